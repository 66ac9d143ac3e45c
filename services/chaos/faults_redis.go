package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/testenv/servers"
)

var redisFaults = []fault{
	{name: "redis-killed", apply: redisAway(nil)},
	{name: "redis-away-10", lasts: 10 * time.Second, apply: redisAway(nil)},
	{name: "redis-away-40", lasts: 40 * time.Second, apply: redisAway(nil)},
	{name: "redis-stopped-10", lasts: 10 * time.Second, apply: redisStopped},
	{name: "redis-stopped-40", lasts: 40 * time.Second, apply: redisStopped},
	{name: "redis-stopped-120", lasts: 120 * time.Second, apply: redisStopped},
	{name: "redis-emptied", loses: true, deaf: true, apply: redisAway((*servers.Redis).Wipe)},
	{name: "redis-readonly", lasts: 15 * time.Second, apply: redisSays("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE")},
	{name: "redis-full", lasts: 15 * time.Second, apply: redisSays("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0")},
	{name: "redis-failover", alone: true, loses: true, deaf: true, apply: redisFailover},
}

// redisAway kills Redis and starts it again, after a change of its data if there is one.
func redisAway(change func(*servers.Redis) error) breaker {
	return func(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
		if err := s.redis.Kill(); err != nil {
			return nil, err
		}
		if change != nil {
			if err := change(s.redis); err != nil {
				return nil, err
			}
		}
		return s.redis.Start, nil
	}
}

func redisStopped(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	return func(context.Context) error { return s.redis.Resume() }, s.redis.Pause()
}

// redisSays sends a command that breaks Redis, and one that mends it.
func redisSays(breaks, mends string) breaker {
	return func(ctx context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
		send := func(ctx context.Context, command string) error {
			client := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
			defer client.Close()
			var words []any
			for word := range strings.FieldsSeq(command) {
				words = append(words, word)
			}
			return client.Do(ctx, words...).Err()
		}
		return func(ctx context.Context) error { return send(ctx, mends) }, send(ctx, breaks)
	}
}

// redisFailover kills the primary. Sentinel promotes a replica, and the links follow Sentinel.
func redisFailover(ctx context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	old := s.redis
	dir := filepath.Join(s.dir, fmt.Sprintf("redis-%d", choose.Uint64()))
	replica, err := old.Replica(ctx, dir, redisSettings...)
	if err != nil {
		return nil, err
	}
	s.also = append(s.also, old, replica)
	sentinel, err := servers.NewSentinel(ctx, dir+"-sentinel", old, 2*time.Second)
	if err != nil {
		return nil, err
	}
	s.also = append(s.also, sentinel)
	if err := pause(ctx, 3*time.Second); err != nil { // Sentinel learns of the replica from the primary
		return nil, err
	}
	if err := old.Kill(); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		for {
			address, err := sentinel.Master(ctx)
			if err != nil {
				return err
			}
			if address == replica.Addr() {
				break
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return err
			}
		}
		s.redis = replica
		if err := s.links.point(toRedis, replica.Addr()); err != nil {
			return err
		}
		if err := sentinel.Close(); err != nil {
			return err
		}
		return old.Close()
	}, nil
}
