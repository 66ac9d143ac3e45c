package redisclient

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
	script = "script"
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

// handshakes are the commands that go-redis sends on each new connection. Older servers refuse some of them, harmlessly.
var handshakes = map[string]bool{"hello": true, "auth": true, "select": true, "client": true}

// hook reports commands to an observer. A pipeline counts as one call.
type hook struct{ observer telemetry.Observer }

// DialHook implements redis.Hook. A failed dial is reported with the command that needed the connection.
func (h hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmd)
		h.report(cmd, began, err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmds)
		if len(cmds) > 0 {
			h.report(cmds[len(cmds)-1], began, err) // the last of a transaction is EXEC: a write
		}
		return err
	}
}

func (h hook) report(cmd redis.Cmder, began time.Time, err error) {
	name := cmd.Name()
	if handshakes[name] {
		return
	}
	class := classes[name]
	if class == "" {
		class = write
	}
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "NOSCRIPT") {
		err = nil // answers, not failures
	}
	h.observer.Observe(class, began, err)
}

// Observe reports each command of the client to the observer.
func Observe(client *redis.Client, observer telemetry.Observer) {
	if observer != nil {
		client.AddHook(hook{observer})
	}
}
