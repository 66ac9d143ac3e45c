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
	refreshInterval = 30 * time.Second // between reads of the key ring
	retryInterval   = time.Second      // after a failed one
)

// signing holds the current signing key and the published key set. It is never modified, only replaced.
type signing struct {
	signer *token.Signer
	jwks   map[string]any
}

// Run refreshes the keys until the context ends.
func (s *Service) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := refreshInterval
		if err := s.Refresh(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "signing keys are not up to date", "err", err)
			next = retryInterval
		}
		timer.Reset(next)
	}
}

// Refresh reads the keys from the ring, and rotates it when it is due. While Redis is down the current keys stay in
// use, because issued tokens must still verify. After any other error nothing is signed or published.
func (s *Service) Refresh(ctx context.Context) error {
	current, published, err := s.deps.Keys.Current(ctx)
	if err != nil {
		if !errors.Is(err, export.ErrUnavailable) {
			s.state.Store(nil)
		}
		return fmt.Errorf("signing keys: %w", err)
	}
	var signer *token.Signer
	keys := make([]any, 0, len(published))
	for _, key := range published {
		s, err := token.NewSigner(key.Private, key.KID)
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		public, err := s.PublicJWK()
		if err != nil {
			return fmt.Errorf("signing keys: %w", err)
		}
		keys = append(keys, public)
		if key.KID == current.KID {
			signer = s
		}
	}
	s.state.Store(&signing{signer: signer, jwks: map[string]any{"keys": keys}})
	return nil
}

// jwks serves the key set. Its max-age is less than the time between a key's publication and its first signature.
func (s *Service) jwks(w http.ResponseWriter, r *http.Request) {
	if !isGet(w, r) {
		return
	}
	state := s.state.Load()
	if state == nil {
		unavailable(errNoKeys).write(w)
		return
	}
	w.Header().Del("Pragma")
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Content-Type", "application/jwk-set+json")
	writeJSON(w, http.StatusOK, state.jwks)
}

// smart serves the discovery document. Clients look for it below the FHIR base, where the API serves it.
func (s *Service) smart(w http.ResponseWriter, r *http.Request) {
	if isGet(w, r) {
		writeJSON(w, http.StatusOK, token.SMARTConfiguration(s.cfg.TokenURL, s.cfg.ClientSecrets))
	}
}

func isGet(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	notAllowed(w, "GET, HEAD").write(w)
	return false
}
