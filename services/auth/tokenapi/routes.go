package tokenapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Config says what the service issues, to whom it speaks and how patient it is.
type Config struct {
	TokenURL string           // the public URL of the token endpoint; its path ends in /token
	Audience string           // aud of the tokens: the FHIR base
	Life     time.Duration    // of a token, 10 s to 5 min
	Secrets  bool             // clients with a secret may use it
	Replay   bool             // an assertion may be used again (conformance Q-02): for test suites that do so
	Limits   authstore.Limits // of failed authentications
	Proxies  []netip.Prefix   // whose X-Forwarded-For is believed
	Now      func() time.Time
	Logger   *slog.Logger
	Client   *http.Client // fetches key sets of clients; nil means one of its own
}

// Defaults are the values of a deployment that says nothing else.
func Defaults() Config {
	return Config{
		Life:   mostLife,
		Limits: authstore.Limits{Window: time.Minute, PerAddress: 30, PerClient: 300},
		Now:    time.Now,
	}
}

// Bounds of a token's life (B-39: 300 s at most).
const (
	leastLife = 10 * time.Second
	mostLife  = 5 * time.Minute
)

// Validate refuses what cannot work, with every problem in one error.
func (c Config) Validate() error {
	var problems []error
	if _, err := Issuer(c.TokenURL); err != nil {
		problems = append(problems, err)
	}
	if c.Audience == "" {
		problems = append(problems, errors.New("no audience for tokens"))
	}
	if c.Life < leastLife || c.Life > mostLife {
		problems = append(problems, fmt.Errorf("the life of a token must be between %s and %s", leastLife, mostLife))
	}
	return errors.Join(append(problems, c.Limits.Check())...)
}

// Issuer is the iss of the tokens that are issued at a token URL: the URL without its last step, /token. The key set is
// at /jwks below it. The token URL must be absolute, http or https, without user, query and fragment.
func Issuer(tokenURL string) (string, error) {
	u, err := url.Parse(tokenURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
		strings.ContainsAny(tokenURL, "?#%") || !strings.HasSuffix(u.Path, "/token") {
		return "", errors.New("the token URL must look like https://host/auth/token")
	}
	return strings.TrimSuffix(tokenURL, "/token"), nil
}

// Parts are what the service works with.
type Parts struct {
	Store    *authstore.Store
	Keys     *authstore.Keys
	Clients  Clients
	Audit    *audit.Log
	Registry *prometheus.Registry
}

// Clients is the register.
type Clients interface {
	// Client returns a client, export.ErrNotFound when it is not registered, or export.ErrUnavailable.
	Client(ctx context.Context, id string) (token.Client, error)
	// Check reports whether the register can be read.
	Check(ctx context.Context) error
}

// Service is the token service. Use New, run Run beside the handler, and Close it at the end.
type Service struct {
	cfg        Config
	parts      Parts
	issuer     string
	path       string // of the token endpoint, less /token
	assertions *token.Assertions
	tokens     *prometheus.CounterVec
	state      atomic.Pointer[signing] // nil: there are no keys to sign with
}

// New returns a service that signs nothing before Run has fetched its keys.
func New(cfg Config, parts Parts) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("token service: %w", err)
	}
	issuer, err := Issuer(cfg.TokenURL)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(issuer)
	if err != nil {
		return nil, fmt.Errorf("token service: %w", err)
	}
	s := &Service{cfg: cfg, parts: parts, issuer: issuer, path: at.Path}
	if s.tokens, err = newMetrics(parts.Registry); err != nil {
		return nil, err
	}
	s.assertions, err = token.NewAssertions(token.AssertionConfig{
		Audience: cfg.TokenURL, Now: cfg.Now, HTTPClient: cfg.Client,
	})
	return s, err
}

// Close stops the fetches of key sets that are under way and waits for them.
func (s *Service) Close() { s.assertions.Close() }

// ServeHTTP answers beside the token URL: /token, /jwks and /.well-known/smart-configuration.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	header.Set("Pragma", "no-cache") // RFC 6749 5.1 asks for both
	defer s.contain(w)
	switch path, _ := strings.CutPrefix(r.URL.Path, s.path); {
	case !strings.HasPrefix(r.URL.Path, s.path+"/"):
		notFound().write(w)
	case path == "/token":
		s.token(w, r)
	case path == "/jwks":
		s.jwks(w, r)
	case path == "/.well-known/smart-configuration":
		s.smart(w, r)
	default:
		notFound().write(w)
	}
}

// Checks are the dependencies for readiness.
func (s *Service) Checks() health.Checks {
	return health.Checks{
		"redis":   s.parts.Store.Ping,
		"clients": s.parts.Clients.Check,
		"keys": func(context.Context) error {
			if s.state.Load() == nil {
				return errors.New("no keys to sign with")
			}
			return nil
		},
	}
}
