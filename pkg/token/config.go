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

// Issuer is one source of tokens. Its keys come from exactly one of JWKSURL, JWKSFile and Discovery; an issuer with
// Introspection may do without.
type Issuer struct {
	Name       string   // the iss claim, compared exactly
	Audiences  []string // a token must name one of these in aud; at least one
	JWKSURL    string   // the key set, https (http on loopback only)
	JWKSFile   string   // the key set as a local file
	Discovery  bool     // the key set is where {Name}/.well-known/openid-configuration says (OpenID Connect Discovery 4)
	Algorithms []string // accepted alg values, a subset of RS256 RS384 ES256 ES384 PS256; none given: all of them

	// SubjectClaim names the claim that becomes the owner's subject: sub (when empty), azp, appid, client_id, cid or
	// oid. None of them can be chosen by the one it speaks of, and none is given to somebody else later.
	SubjectClaim string
	// ScopeClaim names the claim with the scopes, a string or an array: scope (when empty), scp, roles or permissions.
	ScopeClaim string
	// RequiredClaims are claims that a token must have, each with exactly this text. They tell apart what an issuer
	// signs with one key, such as tokens of applications and of people.
	RequiredClaims map[string]string

	Introspection *Introspection // where opaque tokens are asked about; nil: nowhere. One issuer at most has it
}

// Config says whose tokens are accepted.
type Config struct {
	Issuers []Issuer
	// Skew is by how much the issuers' clocks may differ from ours, at most five minutes; zero means 60 seconds.
	Skew time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// HTTPClient fetches key sets and introspects; nil means a client of its own. Its redirect policy is replaced: a
	// key set may move on its own host only, and a token goes to no other place than the configured one.
	HTTPClient *http.Client
	// MaxLifetime refuses tokens that are valid for longer (exp - iat, or exp - now without iat); zero: no limit.
	MaxLifetime time.Duration
}

// Verifier verifies tokens. Its methods may be called from any goroutine.
type Verifier struct {
	issuers     map[string]*issuer
	opaque      *introspector // nil when no issuer introspects
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
	keys      *keyring                // nil for an issuer whose tokens are introspected, all of them
	mapping   mapping
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
	for _, given := range cfg.Issuers {
		verifiers, err := given.verifiers()
		if err != nil {
			stop()
			return nil, fmt.Errorf("token verification: %w", err)
		}
		iss := &issuer{
			name: given.Name, audiences: slices.Clone(given.Audiences), verifiers: verifiers, mapping: given.mapping(),
		}
		if from := given.origin(client); from != nil {
			iss.keys = &keyring{origin: from, now: v.now, life: life, fetches: &v.fetches}
		}
		if given.Introspection != nil {
			v.opaque = newIntrospector(*given.Introspection, cfg.HTTPClient, iss)
			v.opaque.now, v.opaque.life, v.opaque.fetches = v.now, life, &v.fetches
		}
		v.issuers[iss.name] = iss
	}
	return v, nil
}

// origin is where the issuer's keys come from, nil when it has none.
func (i Issuer) origin(client *http.Client) origin {
	switch {
	case i.JWKSFile != "":
		return &local{path: i.JWKSFile}
	case i.JWKSURL != "":
		return &remote{url: i.JWKSURL, client: client}
	case i.Discovery:
		return &discovered{issuer: i.Name, client: client}
	}
	return nil
}

// Close stops the fetches and introspections that are under way and waits for them. Afterwards the keys and answers that
// are held still serve, and no others can be had.
func (v *Verifier) Close() {
	v.stop()
	for _, iss := range v.issuers {
		if iss.keys != nil {
			iss.keys.close()
		}
	}
	if v.opaque != nil {
		v.opaque.close()
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
	introspecting := 0
	for i, iss := range c.Issuers {
		if err := iss.check(); err != nil {
			problems = append(problems, fmt.Errorf("issuer %d (%q): %w", i+1, iss.Name, err))
		}
		if seen[iss.Name] {
			problems = append(problems, fmt.Errorf("issuer %d (%q) is there twice", i+1, iss.Name))
		}
		seen[iss.Name] = true
		if iss.Introspection != nil {
			introspecting++
		}
	}
	if introspecting > 1 {
		// Asking each of them would show every issuer the tokens of the others.
		problems = append(problems, errors.New("several issuers introspect: an opaque token does not say whose it is"))
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
	problems = append(problems, i.checkKeys())
	problems = append(problems, i.checkMapping())
	if i.Introspection != nil {
		problems = append(problems, i.Introspection.check())
	}
	for _, alg := range i.Algorithms {
		if !slices.Contains(algorithms(), alg) {
			problems = append(problems, fmt.Errorf("algorithm %q is not one of %v", alg, algorithms()))
		}
	}
	return errors.Join(problems...)
}

// checkKeys wants one place where keys come from, and none only from an issuer that is asked about every token.
func (i Issuer) checkKeys() error {
	places := 0
	for _, given := range []bool{i.JWKSURL != "", i.JWKSFile != "", i.Discovery} {
		if given {
			places++
		}
	}
	if places > 1 || places == 0 && i.Introspection == nil {
		return errors.New("wants exactly one of a JWKS URL, a JWKS file and discovery; or introspection alone")
	}
	if i.JWKSURL != "" {
		return checkURL("JWKS URL", i.JWKSURL)
	}
	if i.Discovery {
		return checkURL("name, which discovery starts from", i.Name)
	}
	return nil
}

// checkURL wants https: whoever can alter a key set or an answer on its way can make tokens. The URL is not repeated,
// for it may hold a secret that does not belong there.
func checkURL(what, raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return fmt.Errorf("%s: not an absolute URL", what)
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("%s: has a user or a fragment", what)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%s: wants https, or http on loopback", what)
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
