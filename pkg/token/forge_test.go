package token_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

const (
	issuerName = "https://issuer.example"
	audience   = "https://sluice.example/fhir"
	subject    = "client-1"
)

type (
	members   = tokentest.Members
	clock     = testenv.Clock
	keyServer = tokentest.KeyServer
)

var (
	b64   = base64.RawURLEncoding
	jwkOf = tokentest.JWK
	jwks  = tokentest.JWKS
	forge = tokentest.Forge

	rsaKey    = tokentest.RSA
	ecKey     = tokentest.EC
	serveKeys = tokentest.ServeKeys
)

// start returns the time at which every test begins.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func newClock() *testenv.Clock { return testenv.NewClock(start()) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// goodClaims returns the claims of a token that is valid at start.
func goodClaims() members {
	return members{
		"iss": issuerName, "sub": subject, "aud": audience, "scope": "system/*.rs",
		"iat": start().Unix(), "nbf": start().Unix(), "exp": start().Add(5 * time.Minute).Unix(),
	}
}

// sign returns a token with the usual header.
func sign(alg, kid string, key any, claims members) string {
	return forge(alg, key, fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, alg, kid), claims.String())
}

// roundTripper answers requests without a server, as tests in a synctest bubble need.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(body string) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body))}, nil
}

// verifier returns a Verifier that is closed at the end of the test.
func verifier(t testing.TB, c *clock, issuers ...token.Issuer) *token.Verifier {
	t.Helper()
	return verifierWith(t, c, nil, issuers...)
}

// verifierWith returns a verifier that sends its requests to transport, unless it is nil.
func verifierWith(t testing.TB, c *clock, transport roundTripper, issuers ...token.Issuer) *token.Verifier {
	t.Helper()
	cfg := token.Config{Issuers: issuers, Now: c.Now}
	if transport != nil {
		cfg.HTTPClient = &http.Client{Transport: transport}
	}
	v, err := token.NewVerifier(cfg)
	must(t, err)
	t.Cleanup(v.Close)
	return v
}

func issuerAt(url string) token.Issuer {
	return token.Issuer{Name: issuerName, Audiences: []string{"urn:other", audience}, JWKSURL: url}
}
