package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// AssertionType is the client_assertion_type of a JWT (RFC 7523 section 2.2).
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

const (
	// assertionLife is how far ahead of us an assertion may end (SMART: no more than five minutes).
	assertionLife = 5 * time.Minute
	// mostKeySets is how many key sets of clients are kept at once. One of 1 MiB is the exception; a usual one has
	// some hundred bytes.
	mostKeySets = 512
)

// Assertion is a client's assertion taken apart. Until Assertions.Verify has accepted it, nothing in it is true.
type Assertion struct {
	Client  string    // iss and sub, which are the same
	ID      string    // jti: unique among the assertions of the client
	Expires time.Time // exp

	jku string
	parsed
}

// AssertionConfig says what assertions are accepted.
type AssertionConfig struct {
	// Audience is the URL of the token endpoint: aud has to be it, or a list that holds it.
	Audience string
	// Skew is by how much the clients' clocks may differ from ours, at most five minutes; zero means 60 seconds.
	Skew time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// HTTPClient fetches key sets; nil means a client of its own. Its redirect policy is replaced: a key set may
	// move on its own host only.
	HTTPClient *http.Client
}

// Assertions verifies the assertions with which clients authenticate (SMART client-confidential-asymmetric). Its methods
// may be called from any goroutine.
type Assertions struct {
	audience  string
	skew      time.Duration
	now       func() time.Time
	verifiers map[string]jws.Verifier // by algorithm
	sets      *clientSets
	stop      context.CancelFunc
	fetches   sync.WaitGroup
}

// NewAssertions refuses a configuration without an audience or with a skew out of bounds. It fetches nothing.
func NewAssertions(cfg AssertionConfig) (*Assertions, error) {
	if cfg.Audience == "" {
		return nil, errors.New("assertions: no audience: those for other services would pass")
	}
	if cfg.Skew < 0 || cfg.Skew > maxSkew {
		return nil, fmt.Errorf("assertions: skew %s is not between 0 and %s", cfg.Skew, maxSkew)
	}
	verifiers, err := Issuer{Algorithms: AssertionAlgorithms()}.verifiers()
	if err != nil {
		return nil, fmt.Errorf("assertions: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	a := &Assertions{audience: cfg.Audience, skew: cfg.Skew, now: cfg.Now, verifiers: verifiers, stop: stop}
	if a.skew == 0 {
		a.skew = defaultSkew
	}
	if a.now == nil {
		a.now = time.Now
	}
	a.sets = &clientSets{
		client: keySetClient(cfg.HTTPClient), now: a.now, life: life, fetches: &a.fetches, most: mostKeySets,
		byURL: make(map[string]*clientSet),
	}
	return a, nil
}

// Close stops the fetches that are under way and waits for them.
func (a *Assertions) Close() {
	a.stop()
	a.sets.close()
	a.fetches.Wait()
}

// AssertionAlgorithms are those with which assertions may be signed: the two that SMART names.
func AssertionAlgorithms() []string { return []string{jwa.RS384.String(), jwa.ES384.String()} }

// Read takes an assertion apart and checks all that it says of itself: form, algorithm, audience and times. The error
// is ErrInvalid and depends on the assertion alone, not on what clients there are. The iss of a good one says whose
// keys it has to be verified with.
func (a *Assertions) Read(raw string) (*Assertion, error) {
	t, err := parse(raw)
	if err != nil {
		return nil, err
	}
	assertion := &Assertion{Client: t.claims.subject, Expires: t.claims.expires, parsed: t}
	if err := assertion.readMore(raw); err != nil {
		return nil, invalid(err.Error())
	}
	if _, ok := a.verifiers[t.alg]; !ok {
		return nil, invalid("alg is neither RS384 nor ES384")
	}
	if err := a.checkClaims(t.claims); err != nil {
		return nil, err
	}
	return assertion, nil
}

// readMore reads what an assertion has and an access token has not. Its parts are known to be well-formed.
func (a *Assertion) readMore(raw string) error {
	header, payload, err := readParts(raw)
	if err != nil {
		return err
	}
	if typ, there := header["typ"]; there {
		// A token that this service or another one has signed for somebody to bear is no assertion (RFC 8725 3.11).
		if word, _ := text(typ); word != "JWT" && word != "jwt" {
			return errors.New("typ is not JWT")
		}
	}
	if a.kid == "" {
		return errors.New("header has no kid")
	}
	if jku, there := header["jku"]; there {
		var ok bool
		if a.jku, ok = text(jku); !ok {
			return errors.New("jku is not a string, or empty")
		}
	}
	if a.claims.issuer != a.claims.subject {
		return errors.New("iss and sub differ")
	}
	var ok bool
	if a.ID, ok = text(payload["jti"]); !ok {
		return errors.New("no jti")
	}
	return nil
}

func (a *Assertions) checkClaims(c claims) error {
	now := a.now()
	switch {
	case !now.Before(c.expires.Add(a.skew)):
		return invalid("expired")
	case c.expires.After(now.Add(assertionLife + a.skew)):
		return invalid("exp is more than five minutes ahead")
	case now.Add(a.skew).Before(c.notBefore):
		return invalid("not valid yet")
	case now.Add(a.skew).Before(c.issuedAt):
		return invalid("issued in the future")
	case !intersect(c.audiences, []string{a.audience}):
		return invalid("aud is not the URL of the token endpoint")
	}
	return nil
}

// Keep is until when the jti of an assertion must be remembered: no longer than that would the assertion be accepted.
func (a *Assertions) Keep(assertion *Assertion) time.Time { return assertion.Expires.Add(a.skew) }

// Verify checks the signature with the keys that the client was registered with. It returns ErrInvalid when the
// assertion is no good, and export.ErrUnavailable when the client's keys cannot be had. Only a JWKS URL of the
// registration is ever fetched: a jku that is not the same is refused unread (B-24).
func (a *Assertions) Verify(ctx context.Context, assertion *Assertion, client Client) error {
	if assertion.Client != client.ID {
		return invalid("made by another client")
	}
	if assertion.jku != "" && assertion.jku != client.JWKSURL {
		return invalid("jku is not the registered one")
	}
	key, err := a.key(ctx, assertion, client)
	if err != nil {
		return err
	}
	if a.verifiers[assertion.alg].Verify(assertion.signed, assertion.signature, key) != nil {
		return invalid("signature does not verify") // the library's reason adds nothing but risk
	}
	return nil
}

func (a *Assertions) key(ctx context.Context, assertion *Assertion, client Client) (crypto.PublicKey, error) {
	if client.JWKSURL != "" {
		return a.sets.of(client.JWKSURL).find(ctx, assertion.alg, assertion.kid)
	}
	set, err := parseKeySet(client.JWKS)
	if err != nil {
		return nil, invalid("the client has no keys")
	}
	key, err := set.find(assertion.alg, assertion.kid)
	if errors.Is(err, errUnknownKey) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return key, err
}
