package token_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 for crypto.Hash
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// Tokens and key sets are made here by hand, byte for byte and with the standard library's cryptography, so that the
// verifier is not judged by the library that it is built on.

const (
	issuerName = "https://issuer.example"
	audience   = "https://sluice.example/fhir"
	subject    = "client-1"
)

var b64 = base64.RawURLEncoding

// start is the instant at which every test begins.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// clock is a clock that stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: start()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

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

// members is a JSON object in the making.
type members map[string]any

func (m members) with(name string, value any) members {
	changed := members{}
	for k, v := range m {
		changed[k] = v
	}
	changed[name] = value
	return changed
}

func (m members) without(name string) members {
	changed := m.with(name, nil)
	delete(changed, name)
	return changed
}

func (m members) String() string {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// goodClaims are the claims of a token that is accepted at start.
func goodClaims() members {
	return members{
		"iss": issuerName, "sub": subject, "aud": audience, "scope": "system/*.rs",
		"iat": start().Unix(), "nbf": start().Unix(), "exp": start().Add(5 * time.Minute).Unix(),
	}
}

// jwkOf is the public half of a key as a member of a JWKS.
func jwkOf(t testing.TB, kid string, key crypto.Signer) members {
	t.Helper()
	switch public := key.Public().(type) {
	case *rsa.PublicKey:
		return members{
			"kty": "RSA", "kid": kid,
			"n": b64.EncodeToString(public.N.Bytes()),
			"e": b64.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
		}
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		half := len(point) / 2
		return members{
			"kty": "EC", "kid": kid, "crv": public.Curve.Params().Name,
			"x": b64.EncodeToString(point[1 : 1+half]), "y": b64.EncodeToString(point[1+half:]),
		}
	case ed25519.PublicKey:
		return members{"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64.EncodeToString(public)}
	}
	t.Fatalf("no JWK for %T", key)
	return nil
}

func jwks(keys ...members) string {
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return string(data)
}

// forge signs any header and payload as the algorithm says; what they say themselves is not looked at.
func forge(t testing.TB, alg string, key any, header, payload string) string {
	t.Helper()
	input := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	return input + "." + b64.EncodeToString(signature(t, alg, key, input))
}

func signature(t testing.TB, alg string, key any, input string) []byte {
	t.Helper()
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:5]]
	h := hash.New()
	h.Write([]byte(input))
	digest := h.Sum(nil)
	var sig []byte
	var err error
	switch alg[:2] {
	case "RS":
		sig, err = rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), hash, digest)
	case "PS":
		sig, err = rsa.SignPSS(rand.Reader, key.(*rsa.PrivateKey), hash, digest,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case "ES":
		private := key.(*ecdsa.PrivateKey)
		size := (private.Curve.Params().BitSize + 7) / 8
		r, s, signErr := ecdsa.Sign(rand.Reader, private, digest)
		if err = signErr; err == nil {
			sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
		}
	case "HS":
		mac := hmac.New(sha256.New, key.([]byte))
		mac.Write([]byte(input))
		sig = mac.Sum(nil)
	default:
		t.Fatalf("cannot sign with %s", alg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// sign makes an ordinary token.
func sign(t testing.TB, alg, kid string, key any, claims members) string {
	t.Helper()
	return forge(t, alg, key, fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, alg, kid), claims.String())
}

// keyServer serves a key set and counts how often it is asked.
type keyServer struct {
	*httptest.Server
	asked atomic.Int64

	mu      sync.Mutex
	handler http.HandlerFunc
}

func serveKeys(t testing.TB, body string) *keyServer {
	t.Helper()
	s := &keyServer{}
	s.Serve(body)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.mu.Lock()
		handler := s.handler
		s.mu.Unlock()
		handler(w, r)
	}))
	t.Cleanup(s.Server.Close)
	return s
}

func (s *keyServer) Serve(body string) {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
}

func (s *keyServer) Handle(handler http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = handler
}

func (s *keyServer) Fail() {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
}

// verifier makes a Verifier and closes it at the end of the test.
func verifier(t testing.TB, c *clock, issuers ...token.Issuer) *token.Verifier {
	t.Helper()
	v, err := token.NewVerifier(token.Config{Issuers: issuers, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func issuerAt(url string) token.Issuer {
	return token.Issuer{Name: issuerName, Audiences: []string{"urn:other", audience}, JWKSURL: url}
}
