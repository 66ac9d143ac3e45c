package tokenapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const (
	refreshEvery = 30 * time.Second // how often the key ring is looked at
	retryEvery   = time.Second      // the same while that fails
)

// signing is the key to sign with and the key set to publish. It is never altered, only replaced.
type signing struct {
	signer *token.Signer
	jwks   map[string]any
}

// Run keeps the keys up to date until the context ends.
func (s *Service) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := refreshEvery
		if err := s.Refresh(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "signing keys are not up to date", "err", err)
			next = retryEvery
		}
		timer.Reset(next)
	}
}

// Refresh takes the keys from the ring, which rotates when it is time. While Redis is down those in hand stay: what was
// published must be verifiable on. After any other error nothing is signed or published: keys that do not open
// are not ours.
func (s *Service) Refresh(ctx context.Context) error {
	current, published, err := s.parts.Keys.Current(ctx)
	if err != nil {
		if !errors.Is(err, export.ErrUnavailable) {
			s.state.Store(nil)
		}
		return fmt.Errorf("signing keys: %w", err)
	}
	signer, err := token.NewSigner(current.Private, current.KID)
	if err != nil {
		return fmt.Errorf("signing keys: %w", err)
	}
	keys := make([]any, 0, len(published))
	for _, key := range published {
		public, err := token.PublicJWK(&key.Private.PublicKey, "ES256", key.KID)
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		keys = append(keys, public)
	}
	s.state.Store(&signing{signer: signer, jwks: map[string]any{"keys": keys}})
	return nil
}

// jwks publishes the key set. A verifier may keep it as long as a key is published at the least before it signs.
func (s *Service) jwks(w http.ResponseWriter, r *http.Request) {
	if !reads(w, r) {
		return
	}
	state := s.state.Load()
	if state == nil {
		unavailable(nil).write(w)
		return
	}
	w.Header().Del("Pragma")
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Content-Type", "application/jwk-set+json")
	writeJSON(w, http.StatusOK, state.jwks)
}

// smart is the discovery document. The one that clients look for is below the FHIR base, and the API serves it.
func (s *Service) smart(w http.ResponseWriter, r *http.Request) {
	if reads(w, r) {
		writeJSON(w, http.StatusOK, token.SMARTConfiguration(s.cfg.TokenURL, s.cfg.Secrets))
	}
}

func reads(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	notAllowed(w, "GET, HEAD").write(w)
	return false
}
