package token_test

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const (
	endpoint      = "https://auth.example/token"
	serviceIssuer = "https://auth.example"
)

func assertions(t testing.TB, c *clock) *token.Assertions {
	t.Helper()
	a, err := token.NewAssertions(endpoint, serviceIssuer, c.Now, nil)
	must(t, err)
	t.Cleanup(a.Close)
	return a
}

func assertionClaims(c *clock) members {
	return members{
		"iss": "app", "sub": "app", "aud": endpoint, "jti": "1", "exp": c.Now().Add(4 * time.Minute).Unix(),
	}
}

// prove parses and verifies an assertion with the keys of a client.
func prove(t testing.TB, a *token.Assertions, raw string, client token.Client) error {
	t.Helper()
	client.ID = "app"
	assertion, err := a.Parse(raw)
	if err != nil {
		return err
	}
	return a.Verify(t.Context(), assertion, client)
}

// SMART and RFC 7523 have typ JWT and the token endpoint as audience, draft-ietf-oauth-rfc7523bis its own typ and the issuer.
func TestAssertionsOfSMARTAndOfTheDraftAreAccepted(t *testing.T) {
	c, key := newClock(), ecKey(elliptic.P384())
	a, client := assertions(t, c), token.Client{JWKS: []byte(jwks(jwkOf("k", key)))}
	const both = "https://else.example"
	for _, test := range []struct {
		typ  string // a member of the header
		aud  any
		rule token.Rule // "": accepted
	}{
		{``, endpoint, ""},
		{`,"typ":"JWT"`, endpoint, ""},
		{`,"typ":"jwt"`, []string{endpoint}, ""},
		{`,"typ":"application/jwt"`, []string{endpoint, both}, ""},
		{`,"typ":"JWT"`, serviceIssuer, ""},
		{``, []string{serviceIssuer}, ""},
		{`,"typ":"client-authentication+jwt"`, serviceIssuer, ""},
		{`,"typ":"application/Client-Authentication+JWT"`, []string{serviceIssuer}, ""},
		{`,"typ":"client-authentication+jwt"`, endpoint, ""},
		{`,"typ":"client-authentication+jwt"`, []string{endpoint, both}, token.RuleAudience},
		{`,"typ":"JWT"`, []string{serviceIssuer, both}, token.RuleAudience},
		{`,"typ":"JWT"`, serviceIssuer + "/", token.RuleAudience},
		{`,"typ":"JWT"`, []string{}, token.RuleAudience},
		{`,"typ":"at+jwt"`, endpoint, token.RuleKind},
		{`,"typ":"logout+jwt"`, endpoint, token.RuleKind},
	} {
		claims := assertionClaims(c).With("aud", test.aud).With("exp", json.Number("1772366640.75"))
		err := prove(t, a, forge("ES384", key, `{"alg":"ES384","kid":"k"`+test.typ+`}`, claims.String()), client)
		if token.RuleOf(err) != test.rule || (err == nil) != (test.rule == "") {
			t.Errorf("typ %s, aud %v: %v, want rule %q", test.typ, test.aud, err, test.rule)
		}
	}
}

// B-26: a key set is cached as long as its response headers allow, and not longer, except that two fetches are at least 5 s
// apart.
func TestClientKeySetsFollowCachingHeaders(t *testing.T) {
	const date = "Sun, 01 Mar 2026 12:00:00 GMT"
	for name, test := range map[string]struct {
		header http.Header
		kept   time.Duration
	}{
		"no headers":       {http.Header{}, 5 * time.Minute},
		"max-age":          {http.Header{"Cache-Control": {"max-age=90"}}, 90 * time.Second},
		"among others":     {http.Header{"Cache-Control": {`public, MAX-AGE="90", must-revalidate`}}, 90 * time.Second},
		"in two lines":     {http.Header{"Cache-Control": {"public", "max-age=90"}}, 90 * time.Second},
		"stated twice":     {http.Header{"Cache-Control": {"max-age=300, max-age=90"}}, 90 * time.Second},
		"with an Age":      {http.Header{"Cache-Control": {"max-age=90"}, "Age": {"30"}}, time.Minute},
		"Age over it":      {http.Header{"Cache-Control": {"max-age=90"}, "Age": {"91"}}, 0},
		"a year":           {http.Header{"Cache-Control": {"max-age=31536000"}}, time.Hour},
		"too many digits":  {http.Header{"Cache-Control": {"max-age=99999999999999999999"}}, 0},
		"nonsense":         {http.Header{"Cache-Control": {"max-age=soon"}}, 0},
		"negative":         {http.Header{"Cache-Control": {"max-age=-1"}}, 0},
		"zero":             {http.Header{"Cache-Control": {"max-age=0"}}, 0},
		"no-store":         {http.Header{"Cache-Control": {"max-age=90, no-store"}}, 0},
		"no-cache":         {http.Header{"Cache-Control": {"no-cache"}}, 0},
		"public alone":     {http.Header{"Cache-Control": {"public"}}, 5 * time.Minute},
		"Expires":          {http.Header{"Date": {date}, "Expires": {"Sun, 01 Mar 2026 12:02:00 GMT"}}, 2 * time.Minute},
		"Expires long ago": {http.Header{"Date": {date}, "Expires": {"Sun, 01 Mar 2020 12:02:00 GMT"}}, 0},
		"Expires 0":        {http.Header{"Date": {date}, "Expires": {"0"}}, 0},
		"max-age before Expires": {
			http.Header{"Date": {date}, "Expires": {date}, "Cache-Control": {"max-age=90"}}, 90 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, key := newClock(), ecKey(elliptic.P384())
			server := serveKeys(t, "")
			server.Handle(func(w http.ResponseWriter, _ *http.Request) {
				for header, values := range test.header {
					w.Header()[header] = values
				}
				_, _ = w.Write([]byte(jwks(jwkOf("k", key))))
			})
			a := assertions(t, c)
			use := func(want int64) {
				t.Helper()
				must(t, prove(t, a, sign("ES384", "k", key, assertionClaims(c)), token.Client{JWKSURL: server.URL}))
				asked(t, server, want)
			}
			use(1)
			c.Advance(max(test.kept, 5*time.Second) - time.Second)
			use(1)
			c.Advance(time.Second)
			use(2)
		})
	}
}

// Forged assertions for a client whose key set must not be cached cause one fetch in 5 s, and a new key is found then.
func TestForgedAssertionsFetchOnceIn5Seconds(t *testing.T) {
	c, key := newClock(), ecKey(elliptic.P384())
	server := serveKeys(t, "")
	serve := func(set string) {
		server.Handle(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "no-store")
			_, _ = w.Write([]byte(set))
		})
	}
	serve(jwks(jwkOf("old", key)))
	a, client := assertions(t, c), token.Client{JWKSURL: server.URL}
	for n := range 20 {
		raw := sign("ES384", strconv.Itoa(n), ecKey(elliptic.P384()), assertionClaims(c))
		if err := prove(t, a, raw, client); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("forged: %v", err)
		}
	}
	asked(t, server, 1)
	serve(jwks(jwkOf("k", key)))
	c.Advance(5 * time.Second)
	must(t, prove(t, a, sign("ES384", "k", key, assertionClaims(c)), client))
	asked(t, server, 2)
}

func TestClientKeySetUnavailable(t *testing.T) {
	key, elsewhere := ecKey(elliptic.P384()), serveKeys(t, "")
	set := jwks(jwkOf("k", key))
	elsewhere.Serve(set)
	for name, handler := range brokenKeySets(set, elsewhere.URL) {
		t.Run(name, func(t *testing.T) {
			c, server := newClock(), serveKeys(t, "")
			server.Handle(handler)
			a, client := assertions(t, c), token.Client{JWKSURL: server.URL + "/set?secret=1"}
			raw := sign("ES384", "k", key, assertionClaims(c))
			for range 5 {
				err := prove(t, a, raw, client)
				if !errors.Is(err, export.ErrUnavailable) || errors.Is(err, token.ErrInvalid) || strings.Contains(err.Error(), "secret") {
					t.Errorf("got %v, want ErrUnavailable without the URL", err)
				}
			}
			first := server.Asked()
			server.Serve(set)
			c.Advance(5 * time.Second) // retryLimit
			if err := prove(t, a, raw, client); err != nil {
				t.Error(err)
			}
			asked(t, server, first+1)
		})
	}
	asked(t, elsewhere, 0)
}

// Concurrent assertions share one fetch, and the number of cached sets is limited.
func TestClientKeySetsAreFetchedOnceAndLimited(t *testing.T) {
	c, key := newClock(), ecKey(elliptic.P384())
	set, release := jwks(jwkOf("k", key)), make(chan struct{})
	server := serveKeys(t, "")
	server.Handle(func(w http.ResponseWriter, r *http.Request) {
		<-release
		_, _ = w.Write([]byte(set))
	})
	a := assertions(t, c)
	raw := sign("ES384", "k", key, assertionClaims(c))
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if err := prove(t, a, raw, token.Client{JWKSURL: server.URL}); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	all.Wait()
	asked(t, server, 1)
	use := func(n int) {
		t.Helper()
		must(t, prove(t, a, raw, token.Client{JWKSURL: server.URL + "/" + strconv.Itoa(n)}))
	}
	for n := range 512 { // evicts the first set, which was used longest ago
		use(n)
	}
	asked(t, server, 513)
	use(511)
	use(0)
	asked(t, server, 513)
	must(t, prove(t, a, raw, token.Client{JWKSURL: server.URL}))
	asked(t, server, 514)
	use(0)
	asked(t, server, 514)
	use(1)
	asked(t, server, 515)
}

func TestAssertionOfAnotherClientAndAfterClose(t *testing.T) {
	c, key := newClock(), ecKey(elliptic.P384())
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	a := assertions(t, c)
	assertion, err := a.Parse(sign("ES384", "k", key, assertionClaims(c)))
	must(t, err)
	if want := start().Add(5 * time.Minute); !assertion.RememberUntil.Equal(want) {
		t.Errorf("kept until %s, want %s", assertion.RememberUntil, want)
	}
	client := token.Client{ID: "other", JWKS: []byte(jwks(jwkOf("k", key)))}
	if err := a.Verify(t.Context(), assertion, client); !errors.Is(err, token.ErrInvalid) {
		t.Errorf("an assertion of app for other: %v", err)
	}
	for _, of := range [][2]string{{"", serviceIssuer}, {endpoint, ""}} {
		if _, err := token.NewAssertions(of[0], of[1], c.Now, nil); err == nil {
			t.Errorf("assertions for any audience are accepted: %q", of)
		}
	}
	a.Close()
	if err := prove(t, a, sign("ES384", "k", key, assertionClaims(c)), token.Client{JWKSURL: server.URL}); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

// Assertions accept what SignAssertion returns.
func TestSignedAssertionsAreAccepted(t *testing.T) {
	c := newClock()
	a := assertions(t, c)
	private, public, err := token.NewKey(elliptic.P384())
	must(t, err)
	if strings.Contains(string(public), `"d"`) || !strings.Contains(string(private), `"d"`) {
		t.Fatal("the private and the public key are swapped")
	}
	client := token.Client{ID: "app", JWKS: public, Scope: "system/*.rs"}
	must(t, client.Check())
	rsaPrivate := rsaKey(2048)
	rsaJWK := jwkOf("r", rsaPrivate).With("d", b64.EncodeToString(rsaPrivate.D.Bytes())).
		With("p", b64.EncodeToString(rsaPrivate.Primes[0].Bytes())).With("q", b64.EncodeToString(rsaPrivate.Primes[1].Bytes())).
		With("dp", b64.EncodeToString(rsaPrivate.Precomputed.Dp.Bytes())).With("dq", b64.EncodeToString(rsaPrivate.Precomputed.Dq.Bytes())).
		With("qi", b64.EncodeToString(rsaPrivate.Precomputed.Qinv.Bytes())).With("key_ops", []string{"sign"})
	seen := map[string]bool{}
	for key, registered := range map[string]token.Client{
		string(private): client, rsaJWK.String(): {JWKS: []byte(jwks(jwkOf("r", rsaPrivate)))},
	} {
		signer, err := token.ParseSigner([]byte(key), token.AssertionAlgorithms()...)
		must(t, err)
		for range 2 {
			raw, err := signer.SignAssertion("app", endpoint, c.Now())
			must(t, err)
			if err := prove(t, a, raw, registered); err != nil {
				t.Error(err)
			}
			assertion, err := a.Parse(raw)
			if err != nil || seen[assertion.ID] {
				t.Errorf("duplicate id, or error %v", err)
				continue
			}
			seen[assertion.ID] = true
		}
	}
}

func TestParseSignerRefuses(t *testing.T) {
	p384, p256 := ecKey(elliptic.P384()), ecKey(elliptic.P256())
	d := func(key interface{ Bytes() ([]byte, error) }) string {
		secret, err := key.Bytes()
		must(t, err)
		return b64.EncodeToString(secret)
	}
	good := jwkOf("k", p384).With("d", d(p384))
	if _, err := token.ParseSigner([]byte(good.String()), token.AssertionAlgorithms()...); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{
		"nothing":      "",
		"a set":        jwks(good),
		"no kid":       good.Without("kid").String(),
		"public":       good.Without("d").String(),
		"P-256":        jwkOf("k", p256).With("d", d(p256)).String(),
		"for ES256":    good.With("alg", "ES256").String(),
		"a shared key": `{"kty":"oct","kid":"k","k":"c2VjcmV0"}`,
		"use enc":      good.With("use", "enc").String(),
	} {
		_, err := token.ParseSigner([]byte(key), token.AssertionAlgorithms()...)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), d(p384)) {
			t.Errorf("%s: the error contains the key", name)
		}
	}
}

// FuzzAssertion: only the signed assertion is accepted, and every other one is ErrInvalid.
func FuzzAssertion(f *testing.F) {
	c, key := newClock(), ecKey(elliptic.P384())
	a := assertions(f, c)
	client := token.Client{JWKS: []byte(jwks(jwkOf("k", key)))}
	good := sign("ES384", "k", key, assertionClaims(c))
	f.Add(good)
	for _, seed := range []string{"", "..", "null", "eyJhbGciOiJub25lIn0.e30.", "e30.e30.e30", good[:len(good)-1]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		err := prove(t, a, raw, client)
		if (err == nil) != (raw == good) {
			t.Errorf("error %v for %q", err, raw)
		}
		if err != nil && !errors.Is(err, token.ErrInvalid) {
			t.Errorf("error %v is not ErrInvalid", err)
		}
	})
}
