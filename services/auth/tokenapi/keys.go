package tokenapi

import (
	"context"
	"net/http"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// Run refreshes the keys until the context ends.
func (s *Service) Run(ctx context.Context) error { return s.deps.Keys.Run(ctx, s.cfg.Logger) }

// Refresh reads the keys: see keyring.Keys.
func (s *Service) Refresh(ctx context.Context) error { return s.deps.Keys.Refresh(ctx) }

// jwks serves the key set. Its max-age is less than the time between a key's publication and its first signature.
func (s *Service) jwks(w http.ResponseWriter, r *http.Request) {
	if !isGet(w, r) {
		return
	}
	keys, err := s.deps.Keys.JWKS()
	if err != nil {
		unavailable(err).write(w)
		return
	}
	w.Header().Del("Pragma")
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Content-Type", "application/jwk-set+json")
	writeJSON(w, http.StatusOK, keys)
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
