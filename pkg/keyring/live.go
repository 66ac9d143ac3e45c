package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const (
	refreshInterval = 30 * time.Second // between reads of the key ring
	retryInterval   = time.Second      // after a failed one
)

// ErrNoKeys means that this process has no keys yet, or cannot decrypt those of the ring. It is an export.ErrUnavailable.
var ErrNoKeys = fmt.Errorf("no signing keys: %w", export.ErrUnavailable)

// state is what a process uses between two reads of the ring. It is never modified, only replaced.
type state struct {
	signer *token.Signer
	jwks   json.RawMessage
}

// Run refreshes the keys until the context ends.
func (k *Keys) Run(ctx context.Context, log *slog.Logger) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := refreshInterval
		if err := k.Refresh(ctx); err != nil && ctx.Err() == nil {
			log.ErrorContext(ctx, "signing keys are not up to date", "err", err)
			next = retryInterval
		}
		timer.Reset(next)
	}
}

// Refresh reads the keys from the ring, and rotates it when it is due. While Redis is down the current keys stay in
// use, because what they signed must still verify. After any other error nothing is signed or published.
func (k *Keys) Refresh(ctx context.Context) error {
	current, published, err := k.Current(ctx)
	if err != nil {
		if !errors.Is(err, export.ErrUnavailable) {
			k.state.Store(nil)
		}
		return fmt.Errorf("signing keys: %w", err)
	}
	signer, err := token.NewSigner(current.Private, current.KID)
	if err != nil {
		return fmt.Errorf("signing keys: %w", err)
	}
	keys := make([]json.RawMessage, 0, len(published))
	for _, key := range published {
		public, err := token.PublicJWK(key.Public, key.KID)
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		keys = append(keys, public)
	}
	jwks, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		return fmt.Errorf("signing keys: %w", err)
	}
	k.state.Store(&state{signer: signer, jwks: jwks})
	return nil
}

// Signer returns the signer of the current key, or ErrNoKeys.
func (k *Keys) Signer() (*token.Signer, error) {
	if now := k.state.Load(); now != nil {
		return now.signer, nil
	}
	return nil, ErrNoKeys
}

// JWKS returns the key set to publish, a JSON document (RFC 7517), or ErrNoKeys. A process may cache it for less than
// Config.Publish.
func (k *Keys) JWKS() (json.RawMessage, error) {
	if now := k.state.Load(); now != nil {
		return now.jwks, nil
	}
	return nil, ErrNoKeys
}

// Check is a readiness check: ErrNoKeys, or nil.
func (k *Keys) Check(context.Context) error {
	_, err := k.Signer()
	return err
}
