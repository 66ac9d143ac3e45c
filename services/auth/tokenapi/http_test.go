package tokenapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
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
	// Several secrets are valid, and they may be sent with or without form-urlencoding.
	odd := []string{"a+b/c=", "100%&more", "with blank", "%41%2B", "co:lon"}
	several := token.Client{ID: "several"}
	for _, one := range odd {
		several.MoreSecretHashes = append(several.MoreSecretHashes, token.HashSecret(one))
	}
	several.SecretHash, several.MoreSecretHashes = several.MoreSecretHashes[0], several.MoreSecretHashes[1:]
	on.register(several)
	for _, one := range odd {
		wantToken(t, on.post(bare, basic("several", one)), everything)
		wantToken(t, on.post(bare, func(r *http.Request) { r.SetBasicAuth("several", one) }), everything)
	}

	raw := func(header string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", header) }
	}
	for name, test := range map[string]struct {
		f      *fixture
		change func(*http.Request)
	}{
		"switched off":            {off, basic("a:b/c", secret)},
		"two secrets in one":      {on, basic("several", odd[0]+odd[1])},
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

// Wrong secrets are limited per client and address, and per client.
func TestWrongSecretsAreLimited(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) {
		c.Limits.PerAddress, c.Limits.PerClient, c.Limits.Window = 3, 5, time.Hour
		c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
		c.ClientSecrets = true
	})
	f.register(token.Client{ID: "app", SecretHash: token.HashSecret("s")})
	f.register(token.Client{ID: "other", SecretHash: token.HashSecret("o")})
	bare := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}}
	as := func(id, secret, hops string) reply {
		return f.post(bare, basic(id, secret), func(r *http.Request) { r.Header.Set("X-Forwarded-For", hops) })
	}
	bad := func(hops string) reply { return as("app", "wrong", hops) }
	good := func(hops string) reply { return as("app", "s", hops) }
	limited := func(r reply) {
		t.Helper()
		wantError(t, r, 429, "invalid_client")
		seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 3600 {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
	for range 3 {
		wantError(t, bad("192.0.2.1"), 401, "invalid_client")
	}
	limited(bad("192.0.2.1"))
	limited(good("192.0.2.1"))
	limited(good("203.0.113.9, 192.0.2.1, 10.1.2.3")) // hops before the trusted proxies are ignored
	wantToken(t, good("192.0.2.2"), everything)
	wantToken(t, good("192.0.2.1, 192.0.2.2"), everything)
	wantToken(t, as("other", "o", "192.0.2.1"), everything) // another client behind the same address

	// IPv6 addresses are counted per /64.
	for i := range 2 {
		wantError(t, bad(fmt.Sprintf("2001:db8::%d", i)), 401, "invalid_client")
	}
	// After five failures of the client, every address with a failure is refused.
	limited(good("2001:db8::77"))
	limited(bad("2001:db8:0:0:9::1"))
	wantToken(t, good("2001:db8:0:1::1"), everything)
	wantToken(t, good("192.0.2.2"), everything)
	wantError(t, bad("192.0.2.3"), 401, "invalid_client")
	limited(good("192.0.2.3"))
	wantToken(t, as("other", "o", "192.0.2.3"), everything)

	// A client that does not exist is limited in the same way.
	for range 3 {
		wantError(t, as("stranger", "x", "192.0.2.9"), 401, "invalid_client")
	}
	limited(as("stranger", "x", "192.0.2.9"))

	if counted, want := f.counted("sluice_auth_tokens_total"),
		(map[string]float64{"issued": 6, "invalid_client": 9, "limited": 7}); !maps.Equal(counted, want) {
		t.Errorf("counted %v, want %v", counted, want)
	}
}

// counted returns the values of a counter with one label.
func (f *fixture) counted(name string) map[string]float64 {
	families, err := f.metrics.Gather()
	must(f.t, err)
	counted := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == name {
				counted[metric.GetLabel()[0].GetValue()] = metric.GetCounter().GetValue()
			}
		}
	}
	return counted
}

// Whoever shares an address with a client, knows its id and sends garbage does not lock it out.
func TestFailedAssertionsLockNobodyOut(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) {
		c.Limits.PerAddress, c.Limits.PerClient, c.Limits.Window = 1, 1, time.Hour
		c.ClientSecrets = true
	})
	f.app(everything)
	f.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})
	bare := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}}
	header := func(text string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", text) }
	}
	for range 5 {
		wantError(t, f.post(f.form("garbage", everything)), 400, "invalid_client")
		wantError(t, f.post(f.form(f.assertedByB(f.claims()), everything)), 400, "invalid_client")
		wantError(t, f.post(f.form(f.assertedByB(f.of("secret")), everything)), 400, "invalid_client")
		wantError(t, f.post(bare, header("Basic !")), 401, "invalid_client")
		wantError(t, f.post(bare, header("Bearer x")), 401, "invalid_client")
	}
	used := f.form(f.asserted(nil), everything)
	wantToken(t, f.post(used), everything)
	wantError(t, f.post(used), 400, "invalid_client")
	wantToken(t, f.ask(everything), everything)
	wantToken(t, f.post(bare, basic("secret", "s")), everything)
	wantError(t, f.post(bare, basic("app", "x")), 401, "invalid_client")
	wantToken(t, f.ask(everything), everything) // wrong secrets do not block signatures
}

// X-Forwarded-For is ignored when no proxy is trusted.
func TestForwardedForWithoutTrustedProxies(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) {
		c.Limits.PerAddress, c.Limits.Window, c.ClientSecrets = 1, time.Hour, true
	})
	f.register(token.Client{ID: "app", SecretHash: token.HashSecret("s")})
	bare := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}}
	spoofed := func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.77") }
	wantError(t, f.post(bare, basic("app", "x"), spoofed), 401, "invalid_client")
	wantError(t, f.post(bare, basic("app", "s")), 429, "invalid_client")
}

// The operator finds the violated rule in the log, the metric and the audit log. The client does not.
func TestTheRuleOfAFailedAuthenticationIsRecorded(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) { c.ClientSecrets = true })
	f.app(everything)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	f.register(token.Client{ID: "unreachable", JWKSURL: down.URL})
	bare := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}}
	at := func(d time.Duration) int64 { return start().Add(d).Unix() }
	used := f.form(f.asserted(nil), everything)
	wantToken(t, f.post(used), everything)
	other := f.form(f.asserted(nil), everything)
	other.Set("client_id", "other")
	send := map[string]func() reply{
		"malformed":      func() reply { return f.post(f.form("garbage", everything)) },
		"expired":        func() reply { return f.post(f.form(f.asserted(f.claims().With("exp", at(-time.Hour))), everything)) },
		"not_yet_valid":  func() reply { return f.post(f.form(f.asserted(f.claims().With("nbf", at(time.Hour))), everything)) },
		"too_long_lived": func() reply { return f.post(f.form(f.asserted(f.claims().With("exp", at(time.Hour))), everything)) },
		"audience":       func() reply { return f.post(f.form(f.asserted(f.claims().With("aud", otherURL)), everything)) },
		"signature":      func() reply { return f.post(f.form(f.assertedByB(f.claims()), everything)) },
		"unknown_client": func() reply { return f.post(f.form(f.asserted(f.of("stranger")), everything)) },
		"key": func() reply {
			return f.post(f.form(forge("ES384", keys().ec, `{"alg":"ES384","kid":"none"}`, f.claims().String()), everything))
		},
		"keys":      func() reply { return f.post(f.form(f.asserted(f.of("unreachable")), everything)) },
		"replay":    func() reply { return f.post(used) },
		"client_id": func() reply { return f.post(other) },
		"basic":     func() reply { return f.post(bare, func(r *http.Request) { r.Header.Set("Authorization", "Basic !") }) },
		"secret":    func() reply { return f.post(bare, basic("app", "x")) },
	}
	want := map[string]float64{}
	for rule, request := range send {
		want[rule] = 1
		if r := request(); r.Error != "invalid_client" || strings.Contains(r.raw, rule) && !strings.Contains(r.raw, "client_assertion: ") {
			t.Errorf("%s: %d %s", rule, r.status, r.raw)
		}
		if !strings.Contains(f.log.String(), fmt.Sprintf(`"rule":%q`, rule)) {
			t.Errorf("the log does not have the rule %s", rule)
		}
		text, err := os.ReadFile(f.auditAt)
		must(t, err)
		if !bytes.Contains(text, []byte("(rule "+rule+")")) {
			t.Errorf("the audit log does not have the rule %s", rule)
		}
	}
	if counted := f.counted("sluice_auth_refused_total"); !maps.Equal(counted, want) {
		t.Errorf("counted %v, want %v", counted, want)
	}
}

// A token is for one service: a client that another server sends here gets none for it (RFC 8707).
func TestTheResourceIsThisService(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	ask := func(resources ...string) reply {
		form := f.form(f.asserted(nil), everything)
		form["resource"] = resources
		return f.post(form)
	}
	for _, ours := range [][]string{
		{audience}, {audience + "/"}, {""}, {audience, audience}, {"HTTPS://BULK.example.org:443/fhir"},
	} {
		wantToken(t, ask(ours...), everything)
	}
	for _, foreign := range [][]string{
		{"https://evil.example/fhir"}, {audience, "https://evil.example/fhir"}, {audience + "/Group"}, {audience + "?x=y"},
		{audience + "#x"}, {"http://bulk.example.org/fhir"}, {"https://bulk.example.org:8443/fhir"}, {"https://bulk.example.org/FHIR"},
		{"bulk.example.org/fhir"}, {"fhir"}, {"https://bulk.example.org"}, {audience + " " + audience}, {"https://a@bulk.example.org/fhir"},
	} {
		wantError(t, ask(foreign...), 400, "invalid_target")
	}
}

// While Redis is down no token is issued, and the key set stays published.
func TestRedisDown(t *testing.T) {
	f, redis := embeddedFixture(t)
	f.app(everything)
	wantToken(t, f.ask(everything), everything)
	redis.Close()
	r := f.ask(everything)
	wantError(t, r, 503, "temporarily_unavailable")
	if r.header.Get("Retry-After") != "5" {
		t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
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
