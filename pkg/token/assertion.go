package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/lestrrat-go/jwx/v2/jwa"
)

// AssertionType is the client_assertion_type of a JWT (RFC 7523 section 2.2).
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// assertionKind is the typ of an assertion by draft-ietf-oauth-rfc7523bis. SMART has JWT.
const assertionKind = "client-authentication+jwt"

const (
	// assertionLifetime is how far ahead the exp of an assertion may be (SMART: no more than five minutes).
	assertionLifetime = 5 * time.Minute
	// cachedKeySets is the number of cached client key sets. A set usually has a few hundred bytes, at most 1 MiB.
	cachedKeySets = 512
)

// Assertion is a client's assertion. Nothing in it is trusted before Assertions.Verify has accepted it.
type Assertion struct {
	Client        string    // iss and sub, which are the same
	ID            string    // jti: unique among the assertions of the client
	RememberUntil time.Time // when the assertion expires; its jti can be forgotten then

	jku string
	parsed
}

// Assertions verifies the assertions with which clients authenticate (SMART client-confidential-asymmetric). Its methods
// may be called from any goroutine.
type Assertions struct {
	endpoint string // the URL of the token endpoint
	issuer   string // the issuer identifier of the token service
	now      func() time.Time
	client   *http.Client
	keys     *lru.Cache[string, *keyring] // by JWKS URL
	fetches  *fetches
}

// NewAssertions returns a verifier for a token endpoint at a URL, of a token service with an issuer identifier. client
// fetches key sets; nil means a new client. Its redirect policy is replaced: redirects must stay on the same host.
func NewAssertions(endpoint, issuer string, now func() time.Time, client *http.Client) (*Assertions, error) {
	if endpoint == "" || issuer == "" {
		return nil, errors.New("assertions: no audience: assertions for other services would pass")
	}
	keys, err := lru.New[string, *keyring](cachedKeySets)
	if err != nil {
		return nil, fmt.Errorf("assertions: %w", err)
	}
	return &Assertions{
		endpoint: endpoint, issuer: issuer, now: now, client: keySetClient(client), keys: keys, fetches: newFetches(),
	}, nil
}

// Close cancels the running fetches and waits for them.
func (a *Assertions) Close() { a.fetches.close() }

// AssertionAlgorithms returns the accepted algorithms of assertions: the two that SMART names.
func AssertionAlgorithms() []string { return []string{jwa.RS384.String(), jwa.ES384.String()} }

// Parse reads an assertion and checks its form, algorithm, audience and times. The error is ErrInvalid and depends on the
// assertion alone, not on which clients are registered.
func (a *Assertions) Parse(raw string) (*Assertion, error) {
	t, err := parse(raw, "jwt", assertionKind)
	if err != nil {
		return nil, err
	}
	jku, hasJKU := t.header["jku"]
	url, isText := text(jku)
	id, identified := text(t.claims.all["jti"])
	switch {
	case t.kid == "":
		return nil, invalid(RuleMalformed, "header has no kid")
	case hasJKU && !isText:
		return nil, invalid(RuleMalformed, "jku is not a string, or empty")
	case t.claims.issuer != t.claims.subject:
		return nil, invalid(RuleIssuer, "iss and sub differ")
	case !identified:
		return nil, invalid(RuleMalformed, "no jti")
	case !slices.Contains(AssertionAlgorithms(), t.alg):
		return nil, invalid(RuleAlgorithm, "alg is neither RS384 nor ES384")
	}
	now := a.now()
	if err := t.claims.check(now); err != nil {
		return nil, err
	}
	if t.claims.expires.After(now.Add(assertionLifetime + skew)) {
		return nil, invalid(RuleTooLong, "exp is more than five minutes ahead")
	}
	if !a.addressed(t) {
		return nil, invalid(RuleAudience, "aud is neither the URL of the token endpoint nor the issuer")
	}
	return &Assertion{
		Client: t.claims.subject, ID: id, RememberUntil: t.claims.expires.Add(skew), jku: url, parsed: t,
	}, nil
}

// addressed reports whether the aud is the URL of the token endpoint (SMART, RFC 7523) or the issuer identifier
// (draft-ietf-oauth-rfc7523bis). The draft requires a single value. RFC 7523 allows a list that contains the URL.
func (a *Assertions) addressed(t parsed) bool {
	if audiences := t.claims.audiences; len(audiences) == 1 {
		return audiences[0] == a.endpoint || audiences[0] == a.issuer
	}
	return t.typ != assertionKind && slices.Contains(t.claims.audiences, a.endpoint)
}

// Verify checks the signature with the client's registered keys. It returns ErrInvalid when the assertion is refused, and
// export.ErrUnavailable when the client's keys cannot be fetched. Only the registered JWKS URL is fetched: a different jku
// is refused (B-24).
func (a *Assertions) Verify(ctx context.Context, assertion *Assertion, client Client) error {
	if assertion.Client != client.ID {
		return invalid(RuleIssuer, "issued by another client")
	}
	if assertion.jku != "" && assertion.jku != client.JWKSURL {
		return invalid(RuleKey, "jku is not the registered one")
	}
	key, err := a.key(ctx, assertion, client)
	if err != nil {
		return err
	}
	return assertion.verify(key)
}

func (a *Assertions) key(ctx context.Context, assertion *Assertion, client Client) (crypto.PublicKey, error) {
	if client.JWKSURL != "" {
		return a.keyring(client.JWKSURL).find(ctx, assertion.alg, assertion.kid)
	}
	set, err := parseKeySet(client.JWKS)
	if err != nil {
		return nil, invalid(RuleKey, "the client has no keys")
	}
	return set.find(assertion.alg, assertion.kid)
}

func (a *Assertions) keyring(url string) *keyring {
	if held, ok := a.keys.Get(url); ok {
		return held
	}
	added := &keyring{
		read: func(ctx context.Context) ([]byte, http.Header, error) { return get(ctx, a.client, url) },
		keep: keepClient, now: a.now, fetches: a.fetches,
	}
	if held, ok, _ := a.keys.PeekOrAdd(url, added); ok { // another goroutine added it first
		return held
	}
	return added
}
