package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"
)

var postgresFaults = []fault{
	{name: "postgres-killed", apply: postgresAway},
	{name: "postgres-away-20", lasts: 20 * time.Second, apply: postgresAway},
	{name: "postgres-refuses-20", lasts: 20 * time.Second, apply: postgresRefuses},
	{name: "postgres-failover", alone: true, apply: postgresFailover},
	{name: "postgres-timeouts", lasts: 10 * time.Second, fails: true, apply: postgresTimeouts},
}

// postgresAway crashes PostgreSQL. No load may run: whether it has committed would be unknown.
func postgresAway(_ context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	s.loading.Lock()
	return func(ctx context.Context) error {
		defer s.loading.Unlock()
		return s.postgres.Start(ctx)
	}, s.postgres.Kill()
}

// postgresRefuses takes all connections that PostgreSQL may have, those of the services too.
func postgresRefuses(ctx context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	s.loading.Lock()
	free, err := s.postgres.Occupy(ctx)
	return func(ctx context.Context) error {
		defer s.loading.Unlock()
		return free(ctx)
	}, err
}

// caughtUp fails while the replica is behind.
const caughtUp = `DO $$ BEGIN
	IF NOT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()) THEN
		RAISE 'the replica is behind';
	END IF;
END $$`

// postgresFailover promotes a replica and leads all links to it.
func postgresFailover(ctx context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	s.loading.Lock()
	old := s.postgres
	replica, err := old.Replica(ctx, filepath.Join(s.dir, fmt.Sprintf("postgres-%d", choose.Uint64())))
	if err != nil {
		s.loading.Unlock()
		return nil, err
	}
	s.also = append(s.also, old, replica)
	for old.Exec(ctx, caughtUp) != nil {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			s.loading.Unlock()
			return nil, err
		}
	}
	return func(ctx context.Context) error {
		defer s.loading.Unlock()
		if err := replica.Promote(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		s.postgres = replica
		s.mu.Unlock()
		if err := s.links.point(toPostgres, replica.Addr()); err != nil {
			return err
		}
		return old.Close()
	}, old.Kill()
}

// postgresTimeouts ends every statement that takes longer than a millisecond.
func postgresTimeouts(ctx context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	set := func(ctx context.Context, value string) error {
		if err := s.postgres.Exec(ctx, "ALTER SYSTEM SET statement_timeout = "+value); err != nil {
			return err
		}
		return s.postgres.Exec(ctx, "SELECT pg_reload_conf()")
	}
	s.loading.Lock()
	return func(ctx context.Context) error {
		defer s.loading.Unlock()
		for {
			err := set(ctx, "0") // its own statements may take too long
			if err == nil || pause(ctx, 10*time.Millisecond) != nil {
				return err
			}
		}
	}, set(ctx, "1")
}
