package token_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

const (
	issuerName = "https://issuer.example"
	audience   = "https://sluice.example/fhir"
	subject    = "client-1"
)

type members = tokentest.Members

var (
	b64   = base64.RawURLEncoding
	jwkOf = tokentest.JWK
	jwks  = tokentest.JWKS
	forge = tokentest.Forge
)

// start is when every test begins.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// clock moves only when a test advances it.
type clock struct{ since atomic.Int64 } // nanoseconds after start

func newClock() *clock { return &clock{} }

func (c *clock) Now() time.Time          { return start().Add(time.Duration(c.since.Load())) }
func (c *clock) Advance(d time.Duration) { c.since.Add(int64(d)) }

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// goodClaims are the claims of a token that is accepted at start.
func goodClaims() members {
	return members{
		"iss": issuerName, "sub": subject, "aud": audience, "scope": "system/*.rs",
		"iat": start().Unix(), "nbf": start().Unix(), "exp": start().Add(5 * time.Minute).Unix(),
	}
}

// sign makes an ordinary token.
func sign(alg, kid string, key any, claims members) string {
	return forge(alg, key, fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, alg, kid), claims.String())
}

// keyServer serves a key set and counts the requests.
type keyServer struct {
	*httptest.Server
	asked   atomic.Int64
	handler atomic.Pointer[http.HandlerFunc]
}

func serveKeys(t testing.TB, body string) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.Serve(body)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.handler.Load())(w, r)
	}))
	t.Cleanup(s.Server.Close)
	return s
}

func (s *keyServer) Handle(handler http.HandlerFunc) { s.handler.Store(&handler) }

func (s *keyServer) Serve(body string) {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
}

func (s *keyServer) Fail() {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
}

// roundTripper answers requests without a server, as tests in a synctest bubble need.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// verifier returns a Verifier that is closed at the end of the test.
func verifier(t testing.TB, c *clock, issuers ...token.Issuer) *token.Verifier {
	t.Helper()
	return verifierWith(t, token.Config{Issuers: issuers, Now: c.Now})
}

func verifierWith(t testing.TB, cfg token.Config) *token.Verifier {
	t.Helper()
	v, err := token.NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func issuerAt(url string) token.Issuer {
	return token.Issuer{Name: issuerName, Audiences: []string{"urn:other", audience}, JWKSURL: url}
}
