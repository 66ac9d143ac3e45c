package authstore

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Limits bounds the wrong secrets within a window.
type Limits struct {
	// the window in which wrong secrets are counted
	Window time.Duration `env:"AUTH_FAILURES_WINDOW" envDefault:"1m"`
	// wrong secrets allowed per client, address and window
	PerAddress int `env:"AUTH_FAILURES_ADDRESS" envDefault:"30"`
	// wrong secrets allowed per client and window, from all addresses
	PerClient int `env:"AUTH_FAILURES_CLIENT" envDefault:"300"`
}

// Check refuses limits that lock out every client or none.
func (l Limits) Check() error {
	var problems []error
	if l.Window < time.Second || l.Window > time.Hour {
		problems = append(problems, errors.New("SLUICE_AUTH_FAILURES_WINDOW must be between 1s and 1h"))
	}
	if l.PerAddress < 1 {
		problems = append(problems, errors.New("SLUICE_AUTH_FAILURES_ADDRESS must be at least 1"))
	}
	if l.PerClient < 1 {
		problems = append(problems, errors.New("SLUICE_AUTH_FAILURES_CLIENT must be at least 1"))
	}
	return errors.Join(problems...)
}

// Wait returns how long an address must wait before it may authenticate as the client, or zero. It must wait when it has
// failed too often as this client, or when it has failed at all and the client has failed too often from all addresses. So
// failures from other addresses do not lock out a client whose own address has none, failures as one client do not lock out
// the others behind the same address, and an attacker with many addresses gets one attempt from each.
func (s *Store) Wait(ctx context.Context, limits Limits, client, address string) (time.Duration, error) {
	return s.count(ctx, limits, client, address, 0)
}

// Failed counts a failed authentication of the client from the address.
func (s *Store) Failed(ctx context.Context, limits Limits, client, address string) error {
	_, err := s.count(ctx, limits, client, address, 1)
	return err
}

func (s *Store) count(ctx context.Context, limits Limits, client, address string, more int) (time.Duration, error) {
	keys := []string{failPrefix + digest("address", client, address), failPrefix + digest("client", client)}
	wait, err := s.failed.Run(ctx, s.redis, keys,
		more, limits.Window.Milliseconds(), limits.PerAddress, limits.PerClient).Int64()
	if err != nil {
		return 0, redisclient.Unavailable("count failed authentications", err)
	}
	return time.Duration(wait) * time.Millisecond, nil
}
