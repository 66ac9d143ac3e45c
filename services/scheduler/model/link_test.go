package model

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// link is the connection of all processes to Redis. Only one step runs at a time, so it has at most one fault.
type link struct {
	away  bool // Redis cannot be reached
	calls int  // of the step so far
	fault fault
}

// fault is what happens to a call of a step.
type fault struct {
	kind string
	at   int    // the number of the call, from 0
	dies bool   // the process dies with it: no later call is made either
	then func() // for an interlude
	lost string // after an interlude: none, lostRequest or lostAnswer
}

// The kinds of faults.
const (
	none        = "none"
	lostRequest = "the request is lost"
	lostAnswer  = "the answer is lost"
	repeated    = "the call is repeated" // by the client library: the first answer was lost
	interlude   = "others are first"     // before the call
)

var errCut = errors.New("the connection was cut")

// handshakes are sent on each new connection, whenever the library needs one.
var handshakes = map[string]bool{"hello": true, "auth": true, "select": true, "client": true}

func (l *link) call(name string, send func() error) error {
	if handshakes[name] {
		return send()
	}
	if l.away {
		return errCut
	}
	n, f := l.calls, l.fault
	l.calls++
	if n != f.at {
		if f.dies && n > f.at {
			return errCut
		}
		return l.known(send())
	}
	switch f.kind {
	case lostRequest:
		return errCut
	case lostAnswer, repeated:
		if err := l.known(send()); redis.HasErrorPrefix(err, "NOSCRIPT") {
			return err
		}
		if f.kind == lostAnswer {
			return errCut
		}
	case interlude:
		f.then()
		f.kind = f.lost
		l.fault, l.calls = f, n
		return l.call(name, send)
	}
	return l.known(send())
}

// known does not count a script that the server does not know: the library sends its text next. So the number of calls of
// a step is the same on each server.
func (l *link) known(err error) error {
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		l.calls--
	}
	return err
}

// DialHook implements redis.Hook.
func (l *link) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (l *link) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return l.call(cmd.Name(), func() error { return next(ctx, cmd) })
	}
}

// ProcessPipelineHook implements redis.Hook. A pipeline is one call.
func (l *link) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := l.call(cmds[0].Name(), func() error { return next(ctx, cmds) })
		if errors.Is(err, errCut) {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}
