package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// embeddedRedis is a Redis in the memory of this process, with a random password.
type embeddedRedis struct {
	server *miniredis.Miniredis
	url    string
}

func startRedis() (*embeddedRedis, error) {
	server := miniredis.NewMiniRedis()
	password := rand.Text()
	server.RequireAuth(password)
	if err := server.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start embedded redis: %w", err)
	}
	return &embeddedRedis{server: server, url: "redis://:" + password + "@" + server.Addr() + "/0"}, nil
}

// clock advances the time of the embedded server, which otherwise does not expire keys.
func (r *embeddedRedis) clock() rungroup.Component {
	const tick = 100 * time.Millisecond
	return rungroup.Component{Name: "redis clock", Run: func(ctx context.Context) error {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				r.server.FastForward(tick)
			}
		}
	}}
}

func (r *embeddedRedis) close() { r.server.Close() }
