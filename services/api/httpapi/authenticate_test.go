package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

// Every FHIR route requires a valid token first, with the challenge of RFC 6750 (spec 7, Z-01 to Z-03, S-15, D-06, F-04).
// The response does not depend on whether the job or the group exists.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	file := filePath(id, w.run(id, patients(2))[0])
	routes := []struct{ method, path string }{
		{"GET", groupExport}, {"GET", "/fhir/Group/g9/$export"}, {"GET", groupExport + "?_type=Nonsense"},
		{"GET", statusPath(id)}, {"HEAD", statusPath(id)}, {"DELETE", statusPath(id)}, {"GET", "/fhir/exports/none"},
		{"GET", file}, {"HEAD", file}, {"GET", statusPath(id) + "/files/none"},
	}
	genuine := w.genuine(issuerOne, "alice")
	valid := genuine.Token()
	with := func(name string, value any) string {
		changed := genuine
		changed.Claims = genuine.Claims.With(name, value)
		return "Bearer " + changed.Token()
	}
	const absent, rejected = "Bearer", `Bearer error="invalid_token"`
	rules := map[string]int{}
	for _, test := range []struct {
		name      string
		values    []string // of Authorization
		challenge string
		rule      string // in the log, the metric and the audit log
	}{
		{"no header", nil, absent, "no_token"},
		{"other scheme", []string{"Basic YTpi"}, absent, "other_scheme"},
		{"no token", []string{"Bearer"}, absent, "no_token"},
		{"empty token", []string{"Bearer "}, absent, "no_token"},
		{"two headers", []string{"Bearer " + valid, "Bearer " + valid}, absent, "several_headers"},
		{"rubbish", []string{"Bearer invalidToken"}, rejected, "malformed"},
		{"expired", []string{with("exp", w.clock.Now().Add(-time.Hour).Unix())}, rejected, "expired"},
		{"other audience", []string{with("aud", "https://other.example.org")}, rejected, "audience"},
		{"a slash too many", []string{with("aud", base+"/")}, rejected, "audience"},
		{"not yet valid", []string{with("nbf", w.clock.Now().Add(time.Hour).Unix())}, rejected, "not_yet_valid"},
		{"scope with a query", []string{with("scope", "system/Observation.rs?a=b")}, rejected, "scope"},
		{"other issuer", []string{with("iss", "https://evil.example.org")}, rejected, "issuer"},
		{"alg none", []string{"Bearer " + genuine.Hostile()["alg none, kid kept"]}, rejected, "malformed"},
		{"altered", []string{"Bearer " + valid[:len(valid)-8] + "AAAAAAAA"}, rejected, "signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var headers []string
			for _, value := range test.values {
				headers = append(headers, "Authorization", value)
			}
			for _, route := range routes {
				got := w.ask(route.method, route.path, headers...)
				wantHeader(t, got, "WWW-Authenticate", test.challenge)
				if route.method != "HEAD" {
					wantOutcome(t, got, http.StatusUnauthorized, "login", "Authorization")
				} else if got.code != http.StatusUnauthorized {
					t.Errorf("%s %s: %d", route.method, route.path, got.code)
				}
				rules[test.rule]++
				if test.challenge == rejected && strings.Contains(got.body, strings.TrimPrefix(test.values[0], "Bearer ")) {
					t.Errorf("the answer repeats the header: %s", got.body)
				}
			}
		})
	}
	events, log, metrics := string(w.text()), w.log.String(), w.metrics()
	for rule, count := range rules {
		if n := strings.Count(events, "(rule "+rule+")"); n != count {
			t.Errorf("the audit log has the rule %s %d times, want %d", rule, n, count)
		}
		if n := strings.Count(log, fmt.Sprintf(`"rule":%q`, rule)); n != count {
			t.Errorf("the log has the rule %s %d times, want %d", rule, n, count)
		}
		if want := fmt.Sprintf("sluice_api_unauthenticated_total{rule=%q} %d\n", rule, count); !strings.Contains(metrics, want) {
			t.Errorf("no %s", want)
		}
	}
	// A token in the query string is ignored.
	wantOutcome(t, w.ask("GET", groupExport+"?access_token="+valid), http.StatusUnauthorized, "login")
	w.started(w.ask("GET", groupExport, "Authorization", "bEARER "+valid))
}

// Z-03: the response to every invalid token is the same, byte by byte, on every route (RFC 6750 section 3.1). No such token
// is logged, and no address in one is requested.
func TestHostileTokens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	routes := []struct{ method, path string }{{"GET", groupExport}, {"GET", statusPath(id)}, {"DELETE", statusPath(id)}}
	genuine := w.genuine(issuerOne, "alice")
	trap := tokentest.ServeKeys(t, "")
	genuine.Trap = trap.URL
	tokens := genuine.Hostile()
	tokens["not UTF-8"] = genuine.Token() + "\xff"
	for name, claim := range map[string][2]any{
		"bound to a key":     {"cnf", tokentest.Members{"x5t#S256": "made-up"}},
		"scope an object":    {"scope", tokentest.Members{"system/*.read": true}},
		"scope a number":     {"scope", 1},
		"scope with a query": {"scope", "system/*.read system/Observation.rs?code=1"},
	} {
		changed := genuine
		changed.Claims = genuine.Claims.With(claim[0].(string), claim[1])
		tokens[name] = changed.Token()
	}
	answers := map[string]reply{}
	for name, raw := range tokens {
		for _, route := range routes {
			got := w.ask(route.method, route.path, "Authorization", "Bearer "+raw)
			if got.code != http.StatusUnauthorized {
				t.Errorf("%s, %s: %d", name, route.method, got.code)
			}
			answers[name+", "+route.method+" "+route.path] = got
		}
	}
	wantSame(t, answers)
	first := answers["null, GET "+groupExport]
	wantOutcome(t, first, http.StatusUnauthorized, "login", "invalid or expired")
	wantHeader(t, first, "WWW-Authenticate", `Bearer error="invalid_token"`)
	if n := w.active(); n != 1 || trap.Asked() != 0 {
		t.Errorf("%d jobs are active, want 1; %d requests to an address in a token", n, trap.Asked())
	}
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("the owner's own token afterwards: %d %s", got.code, got.body)
	}
	for _, word := range []string{"eyJ", "invalidToken", "mallory", trap.URL} {
		if strings.Contains(w.log.String(), word) {
			t.Errorf("the log shows %q", word)
		}
	}
}
