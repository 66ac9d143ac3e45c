// Package authstore keeps in Redis what the replicas of the token service share: the registered clients, the ids of
// assertions that were used, the counts of failed authentications, and the keys that sign tokens.
//
// It promises that of two uses of one id, one is told that it is the first; that a client which was removed is gone for
// the next question of any replica; that all replicas sign with one key and publish the next one well before it signs;
// and that nobody gets a token out of Redis alone: private keys are there under a seal whose secret is not. Whoever can
// write to Redis can register clients, though, as the command line does.
//
// Every key has an expiry but those of the clients and the key ring, so that nothing grows with what strangers send.
// Redis must run with noeviction: an id that was dropped could be used again.
package authstore

import (
	"context"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/redishook"
)

const (
	clientsKey = "sluice:auth:clients" // hash: client id -> record
	ringKey    = "sluice:auth:keys"    // string: the key ring (JSON)
	usedPrefix = "sluice:auth:used:"   // string for each assertion that was used, until it ends
	failPrefix = "sluice:auth:failed:" // string for each client or address that failed, for one window
)

//go:embed lua/*.lua
var luaFiles embed.FS

// Store is the token service's part of Redis. Use Open.
type Store struct {
	redis  redis.UniversalClient
	now    func() time.Time // nil: the server's clock
	failed *redis.Script
	load   *redis.Script
	swap   *redis.Script
	put    *redis.Script
}

// Open returns a store on the Redis at the URL (redis:// or rediss://, with user, password and database). It makes no
// connection yet. Keys rotate by the clock of Redis; a test gives a clock of its own, everybody else gives nil. roots are
// the authorities that a rediss:// server is verified with, nil for the system's.
func Open(url string, roots *x509.CertPool, now func() time.Time) (*Store, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the Redis URL cannot be parsed") // the library's error may quote the password
	}
	if opts.TLSConfig != nil {
		if opts.TLSConfig.InsecureSkipVerify {
			return nil, errors.New("the Redis URL says skip_verify, which would let anybody pose as the server")
		}
		opts.TLSConfig.RootCAs = roots
	}
	opts.DialTimeout = 2 * time.Second
	opts.ReadTimeout = 3 * time.Second
	opts.WriteTimeout = 3 * time.Second
	opts.MaxRetries = 1
	s := &Store{redis: redis.NewClient(opts), now: now}
	for name, script := range map[string]**redis.Script{
		"failed": &s.failed, "load": &s.load, "swap": &s.swap, "put": &s.put,
	} {
		text, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("load scripts: %w", err), s.Close())
		}
		*script = redis.NewScript(string(text))
	}
	return s, nil
}

// Observe has the observer told of each command. It comes before the first.
func (s *Store) Observe(observer telemetry.Observer) { redishook.Observe(s.redis, observer) }

// Close ends the connections.
func (s *Store) Close() error { return s.redis.Close() }

// Ping reports whether Redis answers and keeps what it is given. A server that does not tell its policy is taken at its
// operator's word.
func (s *Store) Ping(ctx context.Context) error {
	info, err := s.redis.InfoMap(ctx, "memory").Result()
	if err != nil {
		return unavailable("ping redis", s.redis.Ping(ctx).Err())
	}
	policy := info["Memory"]["maxmemory_policy"]
	if policy != "" && policy != "noeviction" {
		return fmt.Errorf("redis evicts keys (maxmemory-policy %s): %w", policy, export.ErrUnavailable)
	}
	return nil
}

// unavailable wraps trouble with Redis, so that callers can tell it from an answer.
func unavailable(act string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, err)
}

// clock is what the scripts are given: the injected clock's instant in ms, or nothing for the server's own.
func (s *Store) clock() string {
	if s.now == nil {
		return ""
	}
	return strconv.FormatInt(s.now().UnixMilli(), 10)
}
