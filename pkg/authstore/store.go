// Package authstore keeps in Redis what the replicas of the token service share: the registered clients, the ids of used
// assertions, the counts of failed authentications, and the keys that sign tokens (pkg/keyring).
//
// Exactly one use of an id is the first. A removed client is gone for all replicas at once. All replicas sign with
// the same key, and publish the next one well before it signs. Access to Redis alone does not allow signing tokens: the
// private keys in it are encrypted with a secret that is not in Redis. But anyone who can write to Redis can register
// clients, as the command line does.
//
// All Redis keys except the clients and the key ring expire, so that requests cannot fill Redis. Redis must run
// with noeviction: an evicted id could be used again.
package authstore

import (
	"context"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
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
	redis  *redis.Client
	now    func() time.Time // nil: the server's clock
	failed *redis.Script
	put    *redis.Script
}

// Open returns a store on the Redis at the URL (redis:// or rediss://, with user, password and database). It makes no
// connection yet. Keys rotate by the clock of Redis; tests pass their own clock, all others nil. roots are the
// authorities that verify a rediss:// server; nil means those of the system.
func Open(url string, roots *x509.CertPool, now func() time.Time) (*Store, error) {
	client, err := redisclient.Open(url, redisclient.WithRoots(roots))
	if err != nil {
		return nil, err
	}
	s := &Store{redis: client, now: now}
	for name, script := range map[string]**redis.Script{
		"failed": &s.failed, "put": &s.put,
	} {
		text, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("load scripts: %w", err), s.Close())
		}
		*script = redis.NewScript(string(text))
	}
	return s, nil
}

// Observe reports each command to the observer. It must be called before the first command.
func (s *Store) Observe(observer telemetry.Observer) { redisclient.Observe(s.redis, observer) }

// Close ends the connections.
func (s *Store) Close() error { return s.redis.Close() }

// Ping returns an error unless Redis answers and never evicts keys.
func (s *Store) Ping(ctx context.Context) error { return redisclient.Ping(ctx, s.redis) }
