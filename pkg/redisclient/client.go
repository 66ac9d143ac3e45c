// Package redisclient opens connections to Redis for the stores that live there. The URL, TLS, time limits, metrics and
// error classes are decided here once.
//
// One Redis primary serves all of Sluice, with Sentinel or a managed failover behind one address. Redis Cluster is not
// supported: scripts change a job and the indexes over all jobs in one step (ADR-0013).
package redisclient

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Option is an option of Open.
type Option func(*settings)

type settings struct {
	roots   *x509.CertPool
	observe telemetry.Observer
	hook    redis.Hook
}

// WithObserver reports each command to the observer.
func WithObserver(observe telemetry.Observer) Option {
	return func(s *settings) { s.observe = observe }
}

// WithHook runs the hook around each command. Tests inject faults with it.
func WithHook(hook redis.Hook) Option { return func(s *settings) { s.hook = hook } }

// WithRoots verifies a rediss:// server with these root certificates; nil means the system's.
func WithRoots(roots *x509.CertPool) Option { return func(s *settings) { s.roots = roots } }

// Open returns a client of the Redis at the URL (redis://, rediss:// or unix://, with user, password and database). It
// makes no connection yet. Time limits are short, because a waiting client must soon get a 503. Errors
// never quote the URL, which may hold a password.
func Open(url string, options ...Option) (*redis.Client, error) {
	var given settings
	for _, option := range options {
		option(&given)
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the Redis URL cannot be parsed: it must look like redis://host:6379/0 or rediss://host:6379/0")
	}
	if opts.TLSConfig != nil {
		if opts.TLSConfig.InsecureSkipVerify {
			return nil, errors.New("the Redis URL has skip_verify, which disables the check of the server's certificate")
		}
		opts.TLSConfig.RootCAs = given.roots
	}
	opts.DialTimeout = 2 * time.Second
	opts.ReadTimeout = 3 * time.Second
	opts.WriteTimeout = 3 * time.Second
	opts.MaxRetries = 1
	client := redis.NewClient(opts)
	Observe(client, given.observe)
	if given.hook != nil {
		client.AddHook(given.hook)
	}
	return client, nil
}

// Ping returns an error unless Redis answers, takes writes and never evicts keys: one that evicts loses jobs silently
// (pitfall 27), and a replica, such as a demoted primary, refuses every write. A managed Redis that hides its state passes.
// So does a full one: downloads and cancels still work, and kick-offs are refused on their own.
func Ping(ctx context.Context, client *redis.Client) error {
	info, err := client.InfoMap(ctx).Result() // Redis 6 takes one section or none
	if err != nil {
		return Unavailable("ping redis", client.Ping(ctx).Err())
	}
	if info["Replication"]["role"] == "slave" {
		return fmt.Errorf("redis is a read-only replica: %w", export.ErrUnavailable)
	}
	policy := info["Memory"]["maxmemory_policy"]
	if policy != "" && policy != "noeviction" {
		return fmt.Errorf("redis evicts keys (maxmemory-policy %s): %w", policy, export.ErrUnavailable)
	}
	return nil
}

// Unavailable wraps an error of Redis as export.ErrUnavailable; nil stays nil.
func Unavailable(act string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, err)
}

// Full reports whether Redis refused a command because it has reached its maxmemory. Asynq passes the text on, not the
// error.
func Full(err error) bool {
	return err != nil && strings.Contains(err.Error(), "OOM command not allowed")
}

// Clock is the time argument of a script: the injected clock in ms, or "" for the server's own time. Services use the
// server's time, so that a wrong clock of a machine cannot cost a worker its units.
func Clock(now func() time.Time) string {
	if now == nil {
		return ""
	}
	return strconv.FormatInt(now().UnixMilli(), 10)
}
