package tokenapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

func get(t *testing.T, target, contentType string, into any) http.Header {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	must(t, err)
	resp, err := http.DefaultTransport.RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != contentType {
		t.Fatalf("%s: %d, %s", target, resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	must(t, json.NewDecoder(resp.Body).Decode(into))
	return resp.Header
}

// B-17, and RFC 6749 section 3.2.
func TestRequestForms(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	good := func() string { return f.form(f.asserted(nil), everything).Encode() }
	contentType := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Content-Type", value) }
	}
	none := func(*http.Request) {}
	for name, test := range map[string]struct {
		method, query, body string
		change              func(*http.Request)
		status              int
	}{
		"B-17 JSON":             {"POST", "", `{"grant_type":"client_credentials"}`, contentType("application/json"), 415},
		"B-17 form as JSON":     {"POST", "", good(), contentType("application/json"), 415},
		"no content type":       {"POST", "", good(), func(r *http.Request) { r.Header.Del("Content-Type") }, 415},
		"multipart":             {"POST", "", good(), contentType("multipart/form-data; boundary=x"), 415},
		"another charset":       {"POST", "", good(), contentType("application/x-www-form-urlencoded; charset=utf-16"), 415},
		"encoded":               {"POST", "", good(), func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }, 415},
		"GET":                   {"GET", "", "", none, 405},
		"GET with the query":    {"GET", "?" + good(), "", none, 405},
		"PUT":                   {"PUT", "", good(), none, 405},
		"OPTIONS":               {"OPTIONS", "", "", none, 405},
		"parameters in the URL": {"POST", "?grant_type=client_credentials", good(), none, 400},
		"assertion in the URL":  {"POST", "?" + good(), "", none, 400},
		"empty body":            {"POST", "", "", none, 400},
		"large body":            {"POST", "", good() + "&pad=" + strings.Repeat("x", 64<<10), none, 413},
		"many parameters":       {"POST", "", good() + strings.Repeat("&a=b", 1) + manyParameters(20), none, 400},
		"scope twice":           {"POST", "", good() + "&scope=system%2F*.rs", none, 400},
		"scope twice, escaped":  {"POST", "", good() + "&%73cope=x", none, 400},
		"unknown twice":         {"POST", "", good() + "&x=1&x=2", none, 400},
		"empty twice":           {"POST", "", good() + "&client_id=&client_id=", none, 400},
		"broken escape":         {"POST", "", good() + "&x=%zz", none, 400},
		"not UTF-8":             {"POST", "", good() + "&x=%ff", none, 400},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.send(test.method, f.url+test.query, test.body, test.change)
			wantError(t, r, test.status, "invalid_request")
			if test.status == http.StatusMethodNotAllowed && r.header.Get("Allow") != "POST" {
				t.Errorf("Allow is %q", r.header.Get("Allow"))
			}
		})
	}
	for _, body := range []string{good(), good() + "&&", good() + "&x=1&refresh_token=", "client_id=&" + good()} {
		wantToken(t, f.send("POST", f.url, body, contentType("application/x-www-form-urlencoded; charset=UTF-8")), everything)
	}
	for path, want := range map[string]int{"/jwks": 405, "/.well-known/smart-configuration": 405, "/": 404, "/token/": 404, "/tokens": 404} {
		if r := f.send("POST", f.base+path, ""); r.status != want {
			t.Errorf("POST %s: %d, want %d", path, r.status, want)
		}
	}
	if r := f.send("GET", strings.TrimSuffix(f.base, "/auth")+"/token", ""); r.status != 404 {
		t.Errorf("/token at another path than the token URL: %d", r.status)
	}
}

func manyParameters(n int) string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "&p%d=x", i)
	}
	return all.String()
}

func basic(id, secret string) func(*http.Request) {
	return func(r *http.Request) {
		text := url.QueryEscape(id) + ":" + url.QueryEscape(secret)
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(text)))
	}
}

func TestClientSecrets(t *testing.T) {
	secret := token.NewSecret()
	bare := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}}
	on := newFixture(t, func(c *tokenapi.Config) { c.ClientSecrets = true })
	off := newFixture(t, nil)
	for _, f := range []*fixture{on, off} {
		f.app(everything)
		f.register(token.Client{ID: "a:b/c", SecretHash: token.HashSecret(secret)})
	}
	wantToken(t, on.post(bare, basic("a:b/c", secret)), everything)
	wantToken(t, on.post(bare, basic("a:b/c", secret)), everything)

	raw := func(header string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", header) }
	}
	for name, test := range map[string]struct {
		f      *fixture
		change func(*http.Request)
	}{
		"switched off":            {off, basic("a:b/c", secret)},
		"wrong secret":            {on, basic("a:b/c", secret+"x")},
		"its hash":                {on, basic("a:b/c", token.HashSecret(secret))},
		"no secret":               {on, basic("a:b/c", "")},
		"no id":                   {on, basic("", secret)},
		"unknown client":          {on, basic("stranger", secret)},
		"a client with keys":      {on, basic("app", secret)},
		"a client with keys only": {on, basic("app", strings.Repeat("-", 64))},
		"Bearer":                  {on, raw("Bearer " + secret)},
		"no base64":               {on, raw("Basic !")},
		"no colon":                {on, raw("Basic " + base64.StdEncoding.EncodeToString([]byte("app")))},
		"broken escape":           {on, raw("Basic " + base64.StdEncoding.EncodeToString([]byte("%zz:x")))},
		"empty":                   {on, raw("Basic ")},
	} {
		t.Run(name, func(t *testing.T) {
			r := test.f.post(bare, test.change)
			wantError(t, r, 401, "invalid_client")
			if !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Basic ") {
				t.Error("no challenge")
			}
			if r.Description != "the client could not be authenticated" {
				t.Errorf("description: %s", r.raw)
			}
		})
	}
	// Two methods in one request, and the id of another client.
	wantError(t, on.post(on.form(on.asserted(nil), everything), basic("app", secret)), 400, "invalid_request")
	two := func(r *http.Request) {
		basic("a:b/c", secret)(r)
		r.Header.Add("Authorization", r.Header.Get("Authorization"))
	}
	wantError(t, on.post(bare, two), 400, "invalid_request")
	foreign := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}, "client_id": {"app"}}
	wantError(t, on.post(foreign, basic("a:b/c", secret)), 401, "invalid_client")
	for _, f := range []*fixture{on, off} {
		if strings.Contains(f.log.String(), secret) {
			t.Error("the log contains the secret")
		}
	}
}

// Failures are limited per address and per client. A client whose own address has not failed still gets tokens.
func TestFailuresAreLimited(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) {
		c.Limits.PerAddress, c.Limits.PerClient, c.Limits.Window = 3, 5, time.Hour
		c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	f.app(everything)
	f.other("other")
	from := func(hops string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("X-Forwarded-For", hops) }
	}
	bad := func(hops string) reply {
		return f.post(f.form(f.assertedByB(f.claims()), everything), from(hops))
	}
	good := func(hops string) reply { return f.post(f.form(f.asserted(nil), everything), from(hops)) }
	limited := func(r reply) {
		t.Helper()
		wantError(t, r, 429, "invalid_client")
		seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 3600 {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
	for range 3 {
		wantError(t, bad("192.0.2.1"), 400, "invalid_client")
	}
	limited(bad("192.0.2.1"))
	limited(good("192.0.2.1"))
	limited(good("203.0.113.9, 192.0.2.1, 10.1.2.3")) // hops before the trusted proxies are ignored
	wantToken(t, good("192.0.2.2"), everything)
	wantToken(t, good("192.0.2.1, 192.0.2.2"), everything)

	// IPv6 addresses are counted per /64.
	for i := range 2 {
		wantError(t, bad(fmt.Sprintf("2001:db8::%d", i)), 400, "invalid_client")
	}
	// After five failures of the client, every address with a failure is refused.
	limited(good("2001:db8::77"))
	limited(bad("2001:db8:0:0:9::1"))
	wantToken(t, good("2001:db8:0:1::1"), everything)
	wantToken(t, good("192.0.2.2"), everything)
	wantError(t, bad("192.0.2.3"), 400, "invalid_client")
	limited(good("192.0.2.3"))
	// Another client from that address is accepted: the address itself has failed only once.
	wantToken(t, f.post(f.form(f.assertedByB(f.of("other")), everything), from("192.0.2.3")), everything)

	families, err := f.metrics.Gather()
	must(t, err)
	counted := map[string]float64{}
	for _, metric := range families[0].GetMetric() {
		counted[metric.GetLabel()[0].GetValue()] = metric.GetCounter().GetValue()
	}
	want := map[string]float64{"issued": 5, "invalid_client": 6, "limited": 6}
	if families[0].GetName() != "sluice_auth_tokens_total" || !maps.Equal(counted, want) {
		t.Errorf("%s counts %v, want %v", families[0].GetName(), counted, want)
	}
}

// X-Forwarded-For is ignored when no proxy is trusted.
func TestForwardedForWithoutTrustedProxies(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) { c.Limits.PerAddress, c.Limits.Window = 1, time.Hour })
	f.app(everything)
	spoofed := func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.77") }
	wantError(t, f.post(f.form("x", everything), spoofed), 400, "invalid_client")
	wantError(t, f.post(f.form(f.asserted(nil), everything)), 429, "invalid_client")
}

// While Redis is down no token is issued, and the key set stays published.
func TestRedisDown(t *testing.T) {
	f, redis := embeddedFixture(t)
	f.app(everything)
	wantToken(t, f.ask(everything), everything)
	redis.Close()
	for _, r := range []reply{f.ask(everything), f.post(f.form("no JWT", everything))} {
		wantError(t, r, 503, "temporarily_unavailable")
		if r.header.Get("Retry-After") != "5" {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
	if err := f.service.Refresh(t.Context()); err == nil {
		t.Error("keys were read although Redis is down")
	}
	var set struct{ Keys []any }
	get(t, f.base+"/jwks", "application/jwk-set+json", &set)
	if len(set.Keys) != 1 {
		t.Errorf("%d keys are published", len(set.Keys))
	}
	must(t, redis.Restart())
	wantToken(t, f.ask(everything), everything)
}

// No token is issued for an assertion whose use was not recorded.
func TestNoTokenUnlessUseIsRecorded(t *testing.T) {
	f, redis := embeddedFixture(t)
	f.app(everything)
	redis.Server().SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
		if cmd == "SET" {
			peer.WriteError("MISCONF no writes now")
		}
		return cmd == "SET"
	})
	form := f.form(f.asserted(nil), everything)
	wantError(t, f.post(form), 503, "temporarily_unavailable")
	redis.Server().SetPreHook(nil)
	wantToken(t, f.post(form), everything)
}

// Without keys that can be decrypted nothing is signed or published.
func TestNoKeys(t *testing.T) {
	f, redis := embeddedFixture(t)
	f.app(everything)
	must(t, redis.Set("sluice:auth:keys", `{"keys":[{"kid":"x","signs":1,"sealed":"AAAA"}]}`))
	if err := f.service.Refresh(t.Context()); err == nil {
		t.Fatal("accepted a key that cannot be decrypted")
	}
	wantError(t, f.ask(everything), 503, "temporarily_unavailable")
	if r := f.send("GET", f.base+"/jwks", ""); r.status != 503 {
		t.Errorf("/jwks: %d", r.status)
	}
	redis.Del("sluice:auth:keys")
	must(t, f.service.Refresh(t.Context()))
	wantToken(t, f.ask(everything), everything)
}

// Every token and every refusal is in the audit log, with the client if it was authenticated. Without the log no token is
// issued.
func TestTokensAreAudited(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	f.ask(everything)
	f.post(f.form(f.asserted(f.of("an-unknown-client")), everything))
	f.ask("launch")
	text, err := os.ReadFile(f.auditAt)
	must(t, err)
	report, err := audit.Verify(audit.Proof{}, audit.Input{Name: "log", Reader: bytes.NewReader(text)})
	must(t, err)
	if report.Problem != nil || report.Lines != 4 { // the first is the log's own
		t.Errorf("%+v", report)
	}
	lines := strings.Split(string(text), "\n")
	for i, words := range [][]string{
		{`"code":"token"`, `"outcome":"0"`, `"system":"` + f.base + `"`, everything},
		{`"code":"token"`, `"outcome":"4"`, "could not be authenticated", `"unauthenticated"`},
		{`"code":"token"`, `"outcome":"4"`, "scope"},
	} {
		for _, word := range words {
			if !strings.Contains(lines[i+1], word) {
				t.Errorf("event %d lacks %q: %s", i, word, lines[i+1])
			}
		}
	}
	for _, secret := range []string{"an-unknown-client", "eyJ"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the log contains %q", secret)
		}
	}
	must(t, f.events.Close())
	wantError(t, f.ask(everything), 503, "temporarily_unavailable")
}
