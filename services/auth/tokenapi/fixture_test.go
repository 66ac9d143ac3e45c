package tokenapi_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
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
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
	"github.com/sluice-fhir/sluice/services/auth/clients"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

const (
	audience   = "https://bulk.example.org/fhir"
	keySecret  = "a secret of the test, 32 bytes long at least"
	otherURL   = "https://elsewhere.example/token"
	everything = "system/*.rs"

	ecHeader = `{"alg":"ES384","kid":"e","typ":"JWT"}` // of the app's EC key
)

type members = tokentest.Members

var (
	b64   = base64.RawURLEncoding
	jwkOf = tokentest.JWK
	forge = tokentest.Forge
)

func jwks(keys ...members) json.RawMessage { return json.RawMessage(tokentest.JWKS(keys...)) }

func start() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC) }

type keyPairs struct {
	rsa, weak             *rsa.PrivateKey
	ec, ecB, ec256, spare *ecdsa.PrivateKey
}

// keys are generated once, because generating RSA keys is slow.
var keys = sync.OnceValue(func() keyPairs {
	return keyPairs{
		rsa: tokentest.RSA(2048), weak: tokentest.RSA(1024), ec: tokentest.EC(elliptic.P384()), ecB: tokentest.EC(elliptic.P384()),
		ec256: tokentest.EC(elliptic.P256()), spare: tokentest.EC(elliptic.P384()),
	}
})

// fixture is a token service with its own Redis, reached over HTTP.
type fixture struct {
	t       testing.TB
	clock   *testenv.Clock
	store   *authstore.Store
	service *tokenapi.Service
	url     string // of the token endpoint
	base    string // the issuer: url without /token
	jti     atomic.Int64
	log     testenv.Buffer
	metrics *prometheus.Registry
	events  *audit.Log
	auditAt string
}

// newFixture starts a service with the default configuration, modified by change unless it is nil.
func newFixture(t testing.TB, change func(*tokenapi.Config)) *fixture {
	t.Helper()
	return fixtureOn(t, testenv.Redis(t), change)
}

// embeddedFixture runs on an embedded Redis, which tests can stop.
func embeddedFixture(t testing.TB) (*fixture, *miniredis.Miniredis) {
	t.Helper()
	redis := testenv.EmbeddedRedis(t)
	return fixtureOn(t, "redis://"+redis.Addr(), nil), redis
}

func fixtureOn(t testing.TB, redis string, change func(*tokenapi.Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: testenv.NewClock(start()), metrics: prometheus.NewRegistry()}
	var err error
	f.store, err = authstore.Open(redis, nil, f.clock.Now)
	must(t, err)
	t.Cleanup(func() { must(t, f.store.Close()) })
	ring, err := f.store.Keys(authstore.Schedule{Rotate: 24 * time.Hour, Publish: 15 * time.Minute}, keySecret)
	must(t, err)
	var handler atomic.Pointer[tokenapi.Service]
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handler.Load().ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	f.base, f.url = server.URL+"/auth", server.URL+"/auth/token"
	f.auditAt = filepath.Join(t.TempDir(), "audit.ndjson")
	f.events, err = audit.Open(audit.Config{Path: f.auditAt, Process: "auth", Now: f.clock.Now})
	must(t, err)
	t.Cleanup(func() { must(t, f.events.Close()) })
	cfg := tokenapi.Config{
		TokenURL: f.url, Audience: audience, Lifetime: 5 * time.Minute, Now: f.clock.Now,
		Limits: authstore.Limits{Window: time.Minute, PerAddress: 1 << 30, PerClient: 1 << 30},
		Logger: slog.New(slog.NewJSONHandler(&f.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	f.service, err = tokenapi.New(cfg, tokenapi.Deps{
		Store: f.store, Keys: ring, Clients: clients.New(nil, f.store), Audit: f.events, Registry: f.metrics,
	})
	must(t, err)
	t.Cleanup(f.service.Close)
	handler.Store(f.service)
	must(t, f.service.Refresh(t.Context()))
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// register stores a client in Redis, as the command line does.
func (f *fixture) register(client token.Client) {
	f.t.Helper()
	if client.Scope == "" {
		client.Scope = everything
	}
	must(f.t, client.Check())
	record, err := client.Record()
	must(f.t, err)
	must(f.t, f.store.AddClient(f.t.Context(), client.ID, record))
}

// app registers a client with an RSA key r and a P-384 key e.
func (f *fixture) app(scope string) {
	f.t.Helper()
	f.register(token.Client{ID: "app", JWKS: jwks(jwkOf("r", keys().rsa), jwkOf("e", keys().ec)), Scope: scope})
}

// other registers a client with its own P-384 key e.
func (f *fixture) other(id string) {
	f.t.Helper()
	f.register(token.Client{ID: id, JWKS: jwks(jwkOf("e", keys().ecB))})
}

// claims returns the claims of a valid assertion of the app.
func (f *fixture) claims() members {
	return members{
		"iss": "app", "sub": "app", "aud": f.url, "exp": f.clock.Now().Add(4 * time.Minute).Unix(),
		"jti": fmt.Sprintf("jti-%d", f.jti.Add(1)),
	}
}

// of returns the claims of a valid assertion of a client.
func (f *fixture) of(client string) members {
	return f.claims().With("iss", client).With("sub", client)
}

// asserted returns an assertion of the app, by default with f.claims.
func (f *fixture) asserted(claims members) string {
	if claims == nil {
		claims = f.claims()
	}
	return forge("ES384", keys().ec, ecHeader, claims.String())
}

// assertedByB returns an assertion signed with the key of another client.
func (f *fixture) assertedByB(claims members) string {
	return forge("ES384", keys().ecB, ecHeader, claims.String())
}

// form returns a valid token request.
func (f *fixture) form(assertion, scope string) url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "scope": {scope}, "client_assertion_type": {token.AssertionType},
		"client_assertion": {assertion},
	}
}

// reply is a response of the token endpoint.
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

func (f *fixture) post(form url.Values, change ...func(*http.Request)) reply {
	f.t.Helper()
	return f.send(http.MethodPost, f.url, form.Encode(), change...)
}

func (f *fixture) send(method, target, body string, change ...func(*http.Request)) reply {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, target, strings.NewReader(body))
	must(f.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	for _, c := range change {
		c(req)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	must(f.t, err)
	text, err := io.ReadAll(resp.Body)
	must(f.t, err)
	must(f.t, resp.Body.Close())
	r := reply{status: resp.StatusCode, header: resp.Header, raw: string(text)}
	if method != http.MethodHead {
		if err := json.Unmarshal(text, &r); err != nil {
			f.t.Fatalf("the response is not JSON: %q", text)
		}
	}
	return r
}

// ask requests a token for the app with a new assertion.
func (f *fixture) ask(scope string) reply {
	f.t.Helper()
	return f.post(f.form(f.asserted(nil), scope))
}

// wantError checks the status and error of a refusal, and the rest of B-38.
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

// bearer decodes a token.
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
