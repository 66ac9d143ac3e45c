// Package redishook tells an observer of each command that is sent to Redis, for the stores that live there.
package redishook

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// The classes of commands.
const (
	script = "script" // a step of ours, or of the queue's
	read   = "read"
	write  = "write"
	probe  = "probe"
)

var classes = map[string]string{
	"evalsha": script, "eval": script,
	"ping": probe, "info": probe, "time": probe, "config": probe,
	"get": read, "mget": read, "hget": read, "hmget": read, "hgetall": read, "hkeys": read, "hlen": read, "exists": read,
	"zrange": read, "zcard": read, "zscore": read, "zcount": read, "lrange": read, "llen": read, "lindex": read,
	"smembers": read, "sismember": read, "zrangebyscore": read, "type": read, "ttl": read, "pttl": read, "scan": read,
	"keys": read, "strlen": read, "hscan": read, "dbsize": read,
}

// handshakes are what the library says on each new connection. Older servers refuse parts of it, which means nothing.
var handshakes = map[string]bool{"hello": true, "auth": true, "select": true, "client": true}

// Observe tells the observer of each command of the client. A pipeline is one call.
func Observe(client redis.UniversalClient, observer telemetry.Observer) {
	if observer != nil {
		client.AddHook(hook{observer})
	}
}

type hook struct{ observer telemetry.Observer }

// DialHook implements redis.Hook: that no connection is made shows in the command that wanted one.
func (h hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmd)
		h.tell(cmd, began, err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmds)
		if len(cmds) > 0 {
			h.tell(cmds[len(cmds)-1], began, err) // of a transaction that is the EXEC: a write
		}
		return err
	}
}

func (h hook) tell(cmd redis.Cmder, began time.Time, err error) {
	if !handshakes[cmd.Name()] {
		h.observer.Observe(class(cmd), began, trouble(err))
	}
}

func class(cmd redis.Cmder) string {
	if known := classes[cmd.Name()]; known != "" {
		return known
	}
	return write
}

// trouble is the error unless it is an answer: that nothing is there, or that the server has yet to be told a script.
func trouble(err error) error {
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "NOSCRIPT") {
		return nil
	}
	return err
}
