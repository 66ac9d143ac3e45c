package tokenapi_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 for crypto.Hash
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/auth/clients"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

// Assertions are made here by hand, byte for byte and with the standard library's cryptography, so that the service is
// not judged by the library that it is built on.

const (
	audience   = "https://bulk.example.org/fhir"
	keySecret  = "a secret of the test, 32 bytes long at least"
	otherURL   = "https://elsewhere.example/token"
	everything = "system/*.rs"
)

var b64 = base64.RawURLEncoding

func start() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) }

// clock is a clock that stands still until it is moved.
type clock struct{ ms atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ms.Store(start().UnixMilli())
	return c
}

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// keys are made once: those for RSA take their time.
var keys = sync.OnceValue(func() (k struct {
	rsa, rsaB, weak       *rsa.PrivateKey
	ec, ecB, ec256, spare *ecdsa.PrivateKey
}) {
	must := func(key *rsa.PrivateKey, err error) *rsa.PrivateKey {
		if err != nil {
			panic(err)
		}
		return key
	}
	mustEC := func(key *ecdsa.PrivateKey, err error) *ecdsa.PrivateKey {
		if err != nil {
			panic(err)
		}
		return key
	}
	k.rsa, k.rsaB = must(rsa.GenerateKey(rand.Reader, 2048)), must(rsa.GenerateKey(rand.Reader, 2048))
	k.weak = must(rsa.GenerateKey(rand.Reader, 1024))
	k.ec, k.ecB = mustEC(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), mustEC(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	k.ec256, k.spare = mustEC(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), mustEC(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	return k
})

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

func jwkOf(kid string, key crypto.Signer) members {
	switch public := key.Public().(type) {
	case *rsa.PublicKey:
		return members{
			"kty": "RSA", "kid": kid, "n": b64.EncodeToString(public.N.Bytes()),
			"e": b64.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
		}
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			panic(err)
		}
		half := len(point) / 2
		return members{
			"kty": "EC", "kid": kid, "crv": public.Curve.Params().Name,
			"x": b64.EncodeToString(point[1 : 1+half]), "y": b64.EncodeToString(point[1+half:]),
		}
	}
	panic("no JWK for this key")
}

func jwks(keys ...members) json.RawMessage {
	data, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return data
}

// forge signs any header and payload as the algorithm says; what they say themselves is not looked at.
func forge(alg string, key any, header, payload string) string {
	input := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384}[alg[2:5]]
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
	}
	if err != nil {
		panic(err)
	}
	return input + "." + b64.EncodeToString(sig)
}

// world is a token service on a Redis of its own, reached over HTTP.
type world struct {
	t       *testing.T
	clock   *clock
	store   *authstore.Store
	service *tokenapi.Service
	url     string // of the token endpoint
	base    string // what is beside it
	jti     atomic.Int64
	log     *syncedLog
	metrics *prometheus.Registry
	events  *audit.Log
	auditAt string
}

// syncedLog is where the service logs to.
type syncedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *syncedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newWorld serves with the settings that change makes of the defaults; nil for the defaults.
func newWorld(t *testing.T, change func(*tokenapi.Config)) *world {
	t.Helper()
	return worldOn(t, testenv.Redis(t), change)
}

func worldOn(t *testing.T, redis string, change func(*tokenapi.Config)) *world {
	t.Helper()
	w := &world{t: t, clock: newClock(), log: &syncedLog{}, metrics: prometheus.NewRegistry()}
	var err error
	w.store, err = authstore.Open(redis, nil, w.clock.now)
	must(t, err)
	t.Cleanup(func() { must(t, w.store.Close()) })
	ring, err := authstore.NewKeys(w.store, authstore.Schedule{Rotate: 24 * time.Hour, Publish: 15 * time.Minute}, keySecret)
	must(t, err)
	var handler atomic.Pointer[tokenapi.Service]
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handler.Load().ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	w.base, w.url = server.URL+"/auth", server.URL+"/auth/token"
	w.auditAt = filepath.Join(t.TempDir(), "audit.ndjson")
	w.events, err = audit.Open(audit.Config{Path: w.auditAt, Process: "auth", Now: w.clock.now})
	must(t, err)
	t.Cleanup(func() { must(t, w.events.Close()) })
	cfg := tokenapi.Defaults()
	cfg.TokenURL, cfg.Audience, cfg.Now = w.url, audience, w.clock.now
	cfg.Limits.PerAddress, cfg.Limits.PerClient = 1<<20, 1<<20
	cfg.Logger = slog.New(slog.NewJSONHandler(w.log, nil))
	if change != nil {
		change(&cfg)
	}
	w.service, err = tokenapi.New(cfg, tokenapi.Parts{
		Store: w.store, Keys: ring, Clients: clients.New(nil, w.store), Audit: w.events, Registry: w.metrics,
	})
	must(t, err)
	t.Cleanup(w.service.Close)
	handler.Store(w.service)
	must(t, w.service.Refresh(t.Context()))
	return w
}

func embedded(t *testing.T) *miniredis.Miniredis { return miniredis.RunT(t) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// register puts a client into Redis as the command line does.
func (w *world) register(client token.Client) {
	w.t.Helper()
	if client.Scope == "" {
		client.Scope = everything
	}
	must(w.t, client.Check())
	record, err := client.Record()
	must(w.t, err)
	must(w.t, w.store.AddClient(w.t.Context(), client.ID, record))
}

// app is a client with an RSA key r and a P-384 key e.
func (w *world) app(scope string) {
	w.t.Helper()
	w.register(token.Client{ID: "app", JWKS: jwks(jwkOf("r", keys().rsa), jwkOf("e", keys().ec)), Scope: scope})
}

// claims are those of a good assertion of the app.
func (w *world) claims() members {
	return members{
		"iss": "app", "sub": "app", "aud": w.url, "exp": w.clock.now().Add(4 * time.Minute).Unix(),
		"jti": fmt.Sprintf("jti-%d", w.jti.Add(1)),
	}
}

// asserted is a good assertion of the app with other claims, when some are given.
func (w *world) asserted(claims members) string {
	if claims == nil {
		claims = w.claims()
	}
	return forge("ES384", keys().ec, `{"alg":"ES384","kid":"e","typ":"JWT"}`, claims.String())
}

// form is a good token request.
func (w *world) form(assertion, scope string) url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "scope": {scope}, "client_assertion_type": {token.AssertionType},
		"client_assertion": {assertion},
	}
}

// reply is an answer of the token endpoint.
type reply struct {
	status int
	header http.Header
	raw    string

	AccessToken string  `json:"access_token"`
	TokenType   string  `json:"token_type"`
	ExpiresIn   float64 `json:"expires_in"`
	Scope       string
	Error       string
	Description string `json:"error_description"`
}

func (w *world) post(form url.Values, change ...func(*http.Request)) reply {
	w.t.Helper()
	return w.send(http.MethodPost, w.url, form.Encode(), change...)
}

func (w *world) send(method, target, body string, change ...func(*http.Request)) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, target, strings.NewReader(body))
	must(w.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	for _, f := range change {
		f(req)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	must(w.t, err)
	text, err := io.ReadAll(resp.Body)
	must(w.t, err)
	must(w.t, resp.Body.Close())
	r := reply{status: resp.StatusCode, header: resp.Header, raw: string(text)}
	if method != http.MethodHead {
		if err := json.Unmarshal(text, &r); err != nil {
			w.t.Fatalf("the answer is no JSON: %q", text)
		}
	}
	return r
}

// ask asks as the app for the scope with an assertion of its own.
func (w *world) ask(scope string) reply {
	w.t.Helper()
	return w.post(w.form(w.asserted(nil), scope))
}

// wantError checks a refusal: status, error, and what every refusal has (B-38).
func wantError(t *testing.T, r reply, status int, code string) {
	t.Helper()
	if r.status != status || r.Error != code || r.Description == "" || r.AccessToken != "" {
		t.Errorf("got %d %s, want %d %s", r.status, r.raw, status, code)
	}
	if r.header.Get("Content-Type") != "application/json" || r.header.Get("Cache-Control") != "no-store" ||
		r.header.Get("Pragma") != "no-cache" {
		t.Errorf("headers of the refusal: %v", r.header)
	}
}

func wantToken(t *testing.T, r reply, scope string) {
	t.Helper()
	if r.status != http.StatusOK || r.AccessToken == "" || r.Error != "" || r.Scope != scope {
		t.Errorf("got %d %s, want a token for %q", r.status, r.raw, scope)
	}
}

// bearer is what a token says.
func bearer(t *testing.T, raw string) (header, payload map[string]any) {
	t.Helper()
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts in a token", len(parts))
	}
	for i, to := range []*map[string]any{&header, &payload} {
		text, err := b64.DecodeString(parts[i])
		must(t, err)
		must(t, json.Unmarshal(text, to))
	}
	return header, payload
}
