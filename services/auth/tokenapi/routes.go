package tokenapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/keyring"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/auth/clients"
)

// Config configures a Service.
type Config struct {
	TokenURL      string           // the public URL of the token endpoint; its path ends in /token
	Audience      string           // aud of the tokens: the FHIR base
	Lifetime      time.Duration    // of a token, 10 s to 5 min
	ClientSecrets bool             // clients with a secret may authenticate with it
	AllowReplay   bool             // an assertion may be used again: for test suites only
	Limits        authstore.Limits // of wrong secrets
	Proxies       []netip.Prefix   // trusted to set X-Forwarded-For
	Now           func() time.Time
	Logger        *slog.Logger
	HTTPClient    *http.Client // fetches key sets of clients; nil means a new client
}

// Bounds of a token's lifetime (B-39: 300 s at most).
const (
	minLifetime = 10 * time.Second
	maxLifetime = 5 * time.Minute
)

// Issuer returns the iss of tokens for a token URL: the URL without /token. The key set is at /jwks below it. The
// token URL must be absolute, http or https, without user, query and fragment.
func Issuer(tokenURL string) (string, error) {
	u, err := url.Parse(tokenURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
		strings.ContainsAny(tokenURL, "?#%") || !strings.HasSuffix(u.Path, "/token") {
		return "", errors.New("the token URL must look like https://host/auth/token")
	}
	return strings.TrimSuffix(tokenURL, "/token"), nil
}

// Deps are the dependencies of a Service.
type Deps struct {
	Store    *authstore.Store
	Keys     *keyring.Keys
	Clients  *clients.Registry
	Audit    *audit.Log
	Registry *prometheus.Registry
}

// Service is the token service. Run must be running while it serves. Call Close at the end.
type Service struct {
	cfg        Config
	deps       Deps
	issuer     string
	path       string // of the token endpoint, without /token
	assertions *token.Assertions
	metrics    metrics
}

// New returns a service without signing keys; Run reads them. All problems of a Config are in one error.
func New(cfg Config, deps Deps) (*Service, error) {
	issuer, err := Issuer(cfg.TokenURL)
	if cfg.Audience == "" {
		err = errors.Join(err, errors.New("the audience of tokens is missing"))
	}
	if cfg.Lifetime < minLifetime || cfg.Lifetime > maxLifetime {
		err = errors.Join(err, fmt.Errorf("the lifetime of a token must be between %s and %s", minLifetime, maxLifetime))
	}
	if err = errors.Join(err, cfg.Limits.Check()); err != nil {
		return nil, fmt.Errorf("token service: %w", err)
	}
	at, err := url.Parse(issuer)
	if err != nil {
		return nil, fmt.Errorf("token service: %w", err)
	}
	s := &Service{cfg: cfg, deps: deps, issuer: issuer, path: at.Path, metrics: newMetrics(deps.Registry)}
	s.assertions, err = token.NewAssertions(cfg.TokenURL, issuer, cfg.Now, cfg.HTTPClient)
	return s, err
}

// Close cancels the running fetches of key sets and waits for them.
func (s *Service) Close() { s.assertions.Close() }

// ServeHTTP serves /token, /jwks and /.well-known/smart-configuration below the issuer's path.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	header.Set("Pragma", "no-cache") // RFC 6749 section 5.1 requires both
	defer s.contain(w)
	switch r.URL.Path {
	case s.path + "/token":
		s.token(w, r)
	case s.path + "/jwks":
		s.jwks(w, r)
	case s.path + "/.well-known/smart-configuration":
		s.smart(w, r)
	default:
		text := "no such path"
		if strings.Contains(r.URL.Path, "//") || strings.HasSuffix(r.URL.Path, "/") {
			text += ": it has a doubled or a trailing slash"
		}
		(&problem{status: http.StatusNotFound, code: "invalid_request", text: text}).write(w)
	}
}

// Checks returns the readiness checks.
func (s *Service) Checks() health.Checks {
	return health.Checks{
		"redis":   s.deps.Store.Ping,
		"clients": s.deps.Clients.Check,
		"keys":    s.deps.Keys.Check,
	}
}
