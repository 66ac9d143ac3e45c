package token

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// Issuer is one source of tokens.
type Issuer struct {
	Name       string   // the iss claim, compared exactly
	Audiences  []string // a token must name one of these in aud; at least one
	JWKSURL    string   // the key set, https (http on loopback only); exactly one of JWKSURL and JWKSFile
	JWKSFile   string   // the key set as a local file
	Algorithms []string // accepted alg values, a subset of RS256 RS384 ES256 ES384 PS256; none given: all of them
}

// Config says whose tokens are accepted.
type Config struct {
	Issuers []Issuer
	// Skew is by how much the issuers' clocks may differ from ours, at most five minutes; zero means 60 seconds.
	Skew time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// HTTPClient fetches key sets; nil means a client of its own. Its redirect policy is replaced: a key set may
	// move on its own host only.
	HTTPClient *http.Client
	// MaxLifetime refuses tokens that are valid for longer (exp - iat, or exp - now without iat); zero: no limit.
	MaxLifetime time.Duration
}

// Verifier verifies tokens. Its methods may be called from any goroutine.
type Verifier struct {
	issuers     map[string]*issuer
	skew        time.Duration
	now         func() time.Time
	maxLifetime time.Duration
	stop        context.CancelFunc
	fetches     sync.WaitGroup
}

// issuer is one configured issuer at work.
type issuer struct {
	name      string
	audiences []string
	verifiers map[string]jws.Verifier // by algorithm
	keys      *keyring
}

const (
	defaultSkew = time.Minute
	maxSkew     = 5 * time.Minute
)

// algorithms are all that can ever be accepted: asymmetric ones that SMART names, plus two that OIDC issuers use.
func algorithms() []string {
	return []string{
		jwa.RS256.String(), jwa.RS384.String(), jwa.ES256.String(), jwa.ES384.String(), jwa.PS256.String(),
	}
}

// NewVerifier refuses an incoherent configuration with every problem in one error. It opens nothing: key sets are
// fetched when the first token needs them, so that the API starts while an issuer is down.
func NewVerifier(cfg Config) (*Verifier, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("token verification: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	v := &Verifier{
		issuers:     make(map[string]*issuer, len(cfg.Issuers)),
		skew:        cfg.Skew,
		now:         cfg.Now,
		maxLifetime: cfg.MaxLifetime,
		stop:        stop,
	}
	if v.skew == 0 {
		v.skew = defaultSkew
	}
	if v.now == nil {
		v.now = time.Now
	}
	client := keySetClient(cfg.HTTPClient)
	for _, iss := range cfg.Issuers {
		verifiers, err := iss.verifiers()
		if err != nil {
			stop()
			return nil, fmt.Errorf("token verification: %w", err)
		}
		var from origin = &remote{url: iss.JWKSURL, client: client}
		if iss.JWKSFile != "" {
			from = &local{path: iss.JWKSFile}
		}
		v.issuers[iss.Name] = &issuer{
			name:      iss.Name,
			audiences: slices.Clone(iss.Audiences),
			verifiers: verifiers,
			keys:      &keyring{origin: from, now: v.now, life: life, fetches: &v.fetches},
		}
	}
	return v, nil
}

// Close stops the fetches that are under way and waits for them. Afterwards keys that are held still serve, and no
// others can be had.
func (v *Verifier) Close() {
	v.stop()
	for _, iss := range v.issuers {
		iss.keys.close()
	}
	v.fetches.Wait()
}

func (c Config) check() error {
	var problems []error
	if len(c.Issuers) == 0 {
		problems = append(problems, errors.New("no issuers"))
	}
	if c.Skew < 0 || c.Skew > maxSkew {
		problems = append(problems, fmt.Errorf("skew %s is not between 0 and %s", c.Skew, maxSkew))
	}
	if c.MaxLifetime < 0 {
		problems = append(problems, fmt.Errorf("longest lifetime %s is negative", c.MaxLifetime))
	}
	seen := make(map[string]bool)
	for i, iss := range c.Issuers {
		if err := iss.check(); err != nil {
			problems = append(problems, fmt.Errorf("issuer %d (%q): %w", i+1, iss.Name, err))
		}
		if seen[iss.Name] {
			problems = append(problems, fmt.Errorf("issuer %d (%q) is there twice", i+1, iss.Name))
		}
		seen[iss.Name] = true
	}
	return errors.Join(problems...)
}

func (i Issuer) check() error {
	var problems []error
	if i.Name == "" {
		problems = append(problems, errors.New("no name"))
	}
	if len(i.Audiences) == 0 || slices.Contains(i.Audiences, "") {
		problems = append(problems, errors.New("no audience, or an empty one: tokens for other services would pass"))
	}
	if (i.JWKSURL == "") == (i.JWKSFile == "") {
		problems = append(problems, errors.New("wants exactly one of a JWKS URL and a JWKS file"))
	}
	if i.JWKSURL != "" {
		problems = append(problems, checkURL(i.JWKSURL))
	}
	for _, alg := range i.Algorithms {
		if !slices.Contains(algorithms(), alg) {
			problems = append(problems, fmt.Errorf("algorithm %q is not one of %v", alg, algorithms()))
		}
	}
	return errors.Join(problems...)
}

// checkURL wants https: whoever can alter the key set on its way can sign tokens. The URL is not repeated, for it
// may hold a secret that does not belong there.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return errors.New("JWKS URL: not an absolute URL")
	case u.User != nil || u.Fragment != "":
		return errors.New("JWKS URL: has a user or a fragment")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return errors.New("JWKS URL: wants https, or http on loopback")
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func (i Issuer) verifiers() (map[string]jws.Verifier, error) {
	accepted := i.Algorithms
	if len(accepted) == 0 {
		accepted = algorithms()
	}
	verifiers := make(map[string]jws.Verifier, len(accepted))
	for _, alg := range accepted {
		verifier, err := jws.NewVerifier(jwa.SignatureAlgorithm(alg))
		if err != nil {
			return nil, fmt.Errorf("algorithm %s: %w", alg, err)
		}
		verifiers[alg] = verifier
	}
	return verifiers, nil
}
