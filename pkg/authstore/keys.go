package authstore

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Schedule configures the rotation of signing keys.
type Schedule struct {
	Rotate time.Duration `env:"AUTH_KEY_ROTATE" envDefault:"24h"` // how long a key signs tokens
	// how long a key is published before it signs
	Publish time.Duration `env:"AUTH_KEY_PUBLISH" envDefault:"15m"`
}

// Check refuses a schedule in which a verifier may not have fetched a key before the key signs.
func (s Schedule) Check() error {
	var problems []error
	if s.Rotate < time.Hour {
		problems = append(problems, errors.New("SLUICE_AUTH_KEY_ROTATE must be at least 1h"))
	}
	if s.Publish < 6*time.Minute || s.Publish > s.Rotate/2 {
		problems = append(problems,
			errors.New("SLUICE_AUTH_KEY_PUBLISH must be between 6m and half of SLUICE_AUTH_KEY_ROTATE"))
	}
	return errors.Join(problems...)
}

// Key is one signing key, on P-256.
type Key struct {
	KID     string
	Private *ecdsa.PrivateKey
}

// Keys is the key ring that all replicas share. Its methods may be called from any goroutine.
type Keys struct {
	store    *Store
	schedule Schedule
	seals    []seal // the first one encrypts, all decrypt
}

// NewKeys returns the key ring of the store. Keys are encrypted with the secret, of at least 32 bytes. Keys encrypted with
// a previous secret can be read too, so that the secret can change while replicas run.
func NewKeys(store *Store, schedule Schedule, secret string, previous ...string) (*Keys, error) {
	if err := schedule.Check(); err != nil {
		return nil, err
	}
	k := &Keys{store: store, schedule: schedule}
	for _, text := range append([]string{secret}, previous...) {
		s, err := newSeal(text)
		if err != nil {
			return nil, fmt.Errorf("secret for signing keys: %w", err)
		}
		k.seals = append(k.seals, s)
	}
	return k, nil
}

// CheckSecret returns an error for a secret that cannot encrypt signing keys.
func CheckSecret(secret string) error {
	_, err := newSeal(secret)
	return err
}

// Current rotates the key ring if it is due, and returns the signing key and all keys to publish, future ones included. If
// several replicas call it at the same time, one changes the ring and the others use its result. The error wraps
// export.ErrUnavailable when Redis cannot be reached. If any key cannot be decrypted, the error does not wrap it, and the
// ring is not used.
func (k *Keys) Current(ctx context.Context) (signing Key, published []Key, err error) {
	const tries = 5 // after a lost race another replica has rotated the ring
	for range tries {
		text, now, err := k.store.loadRing(ctx)
		if err != nil {
			return Key{}, nil, err
		}
		before, err := parseRing(text)
		if err != nil {
			return Key{}, nil, err
		}
		// Do not add to a ring that cannot be decrypted: two replicas with different secrets would fill it.
		if _, err := k.open(before); err != nil {
			return Key{}, nil, err
		}
		after, changed, err := before.step(now, k.schedule, k.seals[0].newKey)
		if err != nil {
			return Key{}, nil, err
		}
		if changed {
			swapped, err := k.store.swapRing(ctx, text, after)
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

// open decrypts each key with the first seal that fits it.
func (k *Keys) open(r ring) ([]Key, error) {
	keys := make([]Key, 0, len(r.Keys))
	for _, entry := range r.Keys {
		var private *ecdsa.PrivateKey
		err := errSeal
		for _, s := range k.seals {
			if private, err = s.open(entry); !errors.Is(err, errSeal) {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, Key{KID: entry.KID, Private: private})
	}
	return keys, nil
}

func (s *Store) loadRing(ctx context.Context) (string, time.Time, error) {
	reply, err := s.load.Run(ctx, s.redis, []string{ringKey}, redisclient.Clock(s.now)).StringSlice()
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

func (s *Store) swapRing(ctx context.Context, before string, after ring) (bool, error) {
	text, err := json.Marshal(after)
	if err != nil {
		return false, fmt.Errorf("store the key ring: %w", err)
	}
	swapped, err := s.swap.Run(ctx, s.redis, []string{ringKey}, before, text).Bool()
	if err != nil {
		return false, redisclient.Unavailable("store the key ring", err)
	}
	return swapped, nil
}
