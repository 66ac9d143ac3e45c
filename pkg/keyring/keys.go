// Package keyring keeps the keys that sign for all replicas of a service in Redis, and rotates them.
//
// All replicas sign with the same key, and publish the next one well before it signs. With a secret, access to Redis alone
// does not allow signing: the private halves in it are encrypted.
package keyring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	_ "embed" // the scripts
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Config configures a ring.
type Config struct {
	Name    string        // its key in Redis
	Label   string        // of what its secrets encrypt: two rings with one secret do not share a key
	Rotate  time.Duration // how long a key signs
	Publish time.Duration // how long a key is published before it signs
	Tail    time.Duration // how long a key is published after its last signature

	// Secrets have at least 32 bytes. The first encrypts, all decrypt, so that the secret can change while replicas run.
	Secrets []string
	// TrustRedis: private halves are stored in plaintext while there are no secrets, and removed an hour after the key's last
	// signature; the public halves that remain are in plaintext. Whoever can write to Redis can then add a key.
	TrustRedis bool
	Now        func() time.Time // nil: keys rotate by the clock of Redis
}

// Key is one key, on P-256.
type Key struct {
	KID     string
	Private *ecdsa.PrivateKey // nil once it is forgotten
	Public  *ecdsa.PublicKey
}

//go:embed lua/load.lua
var loadScript string

//go:embed lua/swap.lua
var swapScript string

// Keys is the key ring that all replicas share. Its methods may be called from any goroutine.
type Keys struct {
	cfg        Config
	redis      *redis.Client
	load, swap *redis.Script
	seals      []seal                // the first one encrypts, all decrypt
	state      atomic.Pointer[state] // nil while there are no keys
}

// New returns the key ring on a Redis. Errors are those of a secret.
func New(client *redis.Client, cfg Config) (*Keys, error) {
	k := &Keys{cfg: cfg, redis: client, load: redis.NewScript(loadScript), swap: redis.NewScript(swapScript)}
	for _, text := range cfg.Secrets {
		s, err := newSeal(text, cfg.Label)
		if err != nil {
			return nil, fmt.Errorf("secret for signing keys: %w", err)
		}
		k.seals = append(k.seals, s)
	}
	if cfg.TrustRedis {
		k.seals = append(k.seals, seal{})
	}
	if len(k.seals) == 0 {
		return nil, errors.New("secret for signing keys: none")
	}
	return k, nil
}

// Current rotates the key ring if it is due, and returns the signing key and all keys to publish, future ones included. If
// several replicas call it at the same time, one changes the ring and the others use its result. The error wraps
// export.ErrUnavailable when Redis cannot be reached. If any key cannot be decrypted, the error does not wrap it, and the
// ring is not used.
func (k *Keys) Current(ctx context.Context) (signing Key, published []Key, err error) {
	const tries = 5 // after a lost race another replica has rotated the ring
	for range tries {
		text, now, err := k.loadRing(ctx)
		if err != nil {
			return Key{}, nil, err
		}
		before, err := parseRing(text)
		if err != nil {
			return Key{}, nil, err
		}
		// Do not add to a ring that cannot be decrypted: two replicas with different secrets would fill it.
		opened, err := k.open(before)
		if err != nil {
			return Key{}, nil, err
		}
		sealed, resealed, err := k.reseal(before, opened)
		if err != nil {
			return Key{}, nil, err
		}
		after, changed, err := sealed.step(now, k.cfg, opened, k.seals[0].newKey)
		if err != nil {
			return Key{}, nil, err
		}
		if changed || resealed {
			swapped, err := k.swapRing(ctx, text, after)
			if err != nil {
				return Key{}, nil, err
			}
			if !swapped {
				continue
			}
		}
		if published, err = k.open(after); err != nil {
			return Key{}, nil, err
		}
		return published[after.signing(now)], published, nil
	}
	return Key{}, nil, fmt.Errorf("rotate signing keys: too many conflicts: %w", export.ErrUnavailable)
}

// reseal encrypts the keys with the first secret that are not, so that the others can be removed.
func (k *Keys) reseal(r ring, opened []Key) (_ ring, changed bool, err error) {
	keys := slices.Clone(r.Keys)
	for i, key := range keys {
		if opened[i].Private == nil {
			continue
		}
		if _, err := k.seals[0].open(key); !errors.Is(err, errSeal) {
			continue
		}
		if keys[i], err = k.seals[0].store(key.KID, key.Signs, opened[i].Private); err != nil {
			return ring{}, false, err
		}
		changed = true
	}
	return ring{Keys: keys}, changed, nil
}

// open decrypts each key with the first seal that fits it.
func (k *Keys) open(r ring) ([]Key, error) {
	keys := make([]Key, 0, len(r.Keys))
	for _, one := range r.Keys {
		if one.Public != nil && k.cfg.TrustRedis {
			public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), one.Public)
			if err != nil {
				return nil, fmt.Errorf("malformed signing key: %w", err)
			}
			keys = append(keys, Key{KID: one.KID, Public: public})
			continue
		}
		var private *ecdsa.PrivateKey
		err := errSeal
		for _, s := range k.seals {
			if private, err = s.open(one); !errors.Is(err, errSeal) {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, Key{KID: one.KID, Private: private, Public: &private.PublicKey})
	}
	return keys, nil
}

func (k *Keys) loadRing(ctx context.Context) (string, time.Time, error) {
	reply, err := k.load.Run(ctx, k.redis, []string{k.cfg.Name}, redisclient.Clock(k.cfg.Now)).StringSlice()
	if err != nil {
		return "", time.Time{}, redisclient.Unavailable("read the key ring", err)
	}
	const values = 2
	if len(reply) != values {
		return "", time.Time{}, fmt.Errorf("read the key ring: %d values, want %d", len(reply), values)
	}
	ms, err := strconv.ParseInt(reply[1], 10, 64)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read the key ring: clock of Redis: %w", err)
	}
	return reply[0], time.UnixMilli(ms), nil
}

func (k *Keys) swapRing(ctx context.Context, before string, after ring) (bool, error) {
	text, err := json.Marshal(after)
	if err != nil {
		return false, fmt.Errorf("store the key ring: %w", err)
	}
	swapped, err := k.swap.Run(ctx, k.redis, []string{k.cfg.Name}, before, text).Bool()
	if err != nil {
		return false, redisclient.Unavailable("store the key ring", err)
	}
	return swapped, nil
}
