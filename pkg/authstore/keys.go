package authstore

import (
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/keyring"
)

// tail is how long a key is published after its last signature: the lifetime of a token (5 minutes), plus the skew of a
// verifier's clock (at most 5 minutes), plus the age of its cached key set (5 minutes).
const tail = 15 * time.Minute

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

// Keys returns the ring of the keys that sign tokens. They are encrypted with the secret, of at least 32 bytes. Keys
// encrypted with a previous secret can be read too.
func (s *Store) Keys(schedule Schedule, secret string, previous ...string) (*keyring.Keys, error) {
	if err := schedule.Check(); err != nil {
		return nil, err
	}
	return keyring.New(s.redis, keyring.Config{
		Name: ringKey, Label: "sluice token service: signing keys, version 1",
		Rotate: schedule.Rotate, Publish: schedule.Publish, Tail: tail,
		Secrets: append([]string{secret}, previous...), Now: s.now,
	})
}
