package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
)

// Issuer is a trusted issuer of tokens. Its keys come from exactly one of JWKSURL, JWKSFile and Discovery; an issuer with
// Introspection may have none.
type Issuer struct {
	Name       string   // the iss claim, compared exactly
	Audiences  []string // a token must name one of these in aud; at least one
	JWKSURL    string   // the key set, https (http on loopback only)
	JWKSFile   string   // the key set as a local file
	Discovery  bool     // {Name}/.well-known/openid-configuration names the key set (OpenID Connect Discovery 4)
	Algorithms []string // accepted alg values, a subset of RS256 RS384 ES256 ES384 PS256; empty means all

	// SubjectClaim names the claim that becomes the owner's subject: sub (when empty), azp, appid, client_id, cid or oid.
	// The issuer assigns these and never reassigns them to another client or person.
	SubjectClaim string
	// ScopeClaim names the claim with the scopes, a string or an array: scope (when empty), scp, roles or permissions.
	ScopeClaim string
	// RequiredClaims are claims that a token must have, each with exactly this text. They distinguish tokens that an issuer
	// signs with the same key, such as those of applications and those of people.
	RequiredClaims map[string]string

	Introspection *Introspection // for opaque tokens; nil means none. At most one issuer has it
}

// Config configures a Verifier.
type Config struct {
	Issuers []Issuer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// HTTPClient fetches key sets and introspects; nil means a new client. Its redirect policy is replaced: redirects of
	// key sets must stay on the same host, and an introspection is never redirected.
	HTTPClient *http.Client
}

// skew is the tolerated clock skew of issuers and clients.
const skew = time.Minute

// Verifier verifies tokens. Its methods may be called from any goroutine.
type Verifier struct {
	issuers map[string]*issuer
	opaque  *introspector // nil when no issuer introspects
	now     func() time.Time
	fetches *fetches
}

// issuer is an Issuer with the defaults applied, and its keys.
type issuer struct {
	Issuer
	keys *keyring // nil when all tokens are introspected
}

// algorithms returns the supported algorithms: the asymmetric ones that SMART names, plus two that OIDC issuers use.
func algorithms() []string {
	return []string{
		jwa.RS256.String(), jwa.RS384.String(), jwa.ES256.String(), jwa.ES384.String(), jwa.PS256.String(),
	}
}

// NewVerifier refuses an incoherent configuration with every problem in one error. It fetches no key sets; the first
// token causes the first fetch, so the API can start while an issuer is down.
func NewVerifier(cfg Config) (*Verifier, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("token verification: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{issuers: make(map[string]*issuer, len(cfg.Issuers)), now: cfg.Now, fetches: newFetches()}
	client := keySetClient(cfg.HTTPClient)
	for _, given := range cfg.Issuers {
		iss := &issuer{Issuer: given.withDefaults(), keys: v.keyring(given, client)}
		v.issuers[iss.Name] = iss
		if given.Introspection == nil {
			continue
		}
		var err error
		if v.opaque, err = newIntrospector(*given.Introspection, cfg.HTTPClient, iss, v.now, v.fetches); err != nil {
			return nil, fmt.Errorf("token verification: %w", err)
		}
	}
	return v, nil
}

// withDefaults returns a copy with the defaults applied.
func (i Issuer) withDefaults() Issuer {
	i.Audiences, i.RequiredClaims = slices.Clone(i.Audiences), maps.Clone(i.RequiredClaims)
	i.SubjectClaim, i.ScopeClaim = cmp.Or(i.SubjectClaim, subjectClaims()[0]), cmp.Or(i.ScopeClaim, scopeClaims()[0])
	if len(i.Algorithms) == 0 {
		i.Algorithms = algorithms()
	}
	return i
}

// keyring returns the keyring of an issuer, or nil if it has no keys.
func (v *Verifier) keyring(i Issuer, client *http.Client) *keyring {
	k := &keyring{keep: keepIssuer, now: v.now, fetches: v.fetches}
	switch {
	case i.JWKSFile != "":
		k.file = &keyFile{path: i.JWKSFile}
		k.read = k.file.read
	case i.JWKSURL != "":
		k.read = func(ctx context.Context) ([]byte, http.Header, error) { return get(ctx, client, i.JWKSURL) }
	case i.Discovery:
		k.read = func(ctx context.Context) ([]byte, http.Header, error) { return discover(ctx, client, i.Name) }
	default:
		return nil
	}
	return k
}

// Close cancels the running fetches and introspections and waits for them. Cached keys and verdicts are
// still used afterwards; nothing else is fetched.
func (v *Verifier) Close() { v.fetches.close() }

func (c Config) check() error {
	var problems []error
	if len(c.Issuers) == 0 {
		problems = append(problems, errors.New("no issuers"))
	}
	seen := make(map[string]bool)
	introspecting := 0
	for i, iss := range c.Issuers {
		if err := iss.check(); err != nil {
			problems = append(problems, fmt.Errorf("issuer %d (%q): %w", i+1, iss.Name, err))
		}
		if seen[iss.Name] {
			problems = append(problems, fmt.Errorf("issuer %d (%q): duplicate name", i+1, iss.Name))
		}
		seen[iss.Name] = true
		if iss.Introspection != nil {
			introspecting++
		}
	}
	if introspecting > 1 {
		// Each of them would see the tokens of the others.
		problems = append(problems, errors.New("several issuers introspect, but an opaque token names no issuer"))
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
	problems = append(problems, i.checkKeys(), i.checkClaims())
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

// checkKeys requires one source of keys, which may be missing only with introspection.
func (i Issuer) checkKeys() error {
	sources := count(i.JWKSURL != "", i.JWKSFile != "", i.Discovery)
	if sources > 1 || sources == 0 && i.Introspection == nil {
		return errors.New("needs exactly one of a JWKS URL, a JWKS file and discovery; or introspection alone")
	}
	if i.JWKSURL != "" {
		return checkURL("JWKS URL", i.JWKSURL)
	}
	if i.Discovery {
		return checkURL("name (the base of discovery)", i.Name)
	}
	return nil
}

// count returns how many of the conditions are true.
func count(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

// checkURL requires https, because anyone who can change a key set or a response in transit can make tokens. Errors do not
// contain the URL, which may contain a secret.
func checkURL(what, raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return fmt.Errorf("%s: not an absolute URL", what)
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("%s: must not have a user or a fragment", what)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%s: must be https, or http on loopback", what)
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
