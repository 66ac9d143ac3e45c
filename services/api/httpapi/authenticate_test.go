package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every FHIR route wants a valid token before anything else, and says so as RFC 6750 does (spec 7, Z-01 to
// Z-03, S-15, D-06, F-04). The answer does not depend on what is there.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	file := w.run(id, patients(2))[0]
	routes := []struct{ method, path string }{
		{"GET", groupExport}, {"GET", "/fhir/Group/g9/$export"}, {"GET", groupExport + "?_type=Nonsense"},
		{"GET", "/fhir/exports/" + string(id)}, {"HEAD", "/fhir/exports/" + string(id)},
		{"DELETE", "/fhir/exports/" + string(id)}, {"GET", "/fhir/exports/none"},
		{"GET", "/fhir/exports/" + string(id) + "/files/" + file.Name},
		{"HEAD", "/fhir/exports/" + string(id) + "/files/" + file.Name},
		{"GET", "/fhir/exports/" + string(id) + "/files/none"},
	}
	valid := w.issuer.token(t, "https://one.example.org", "alice")
	now := w.clock.Now()
	claims := func(name string, value any) map[string]any {
		all := map[string]any{
			"iss": "https://one.example.org", "sub": "alice", "aud": audience, "iat": now.Unix(),
			"exp": now.Add(time.Minute).Unix(), "scope": "system/*.read",
		}
		all[name] = value
		return all
	}
	signed := func(name string, value any) string {
		return w.issuer.sign(t, map[string]any{"alg": "RS384", "kid": "k1"}, claims(name, value))
	}
	const absent, rejected = "Bearer", `Bearer error="invalid_token"`
	tests := []struct {
		name      string
		headers   []string
		challenge string
	}{
		{"no header", nil, absent},
		{"other scheme", []string{"Authorization", "Basic YTpi"}, absent},
		{"no token", []string{"Authorization", "Bearer"}, absent},
		{"empty token", []string{"Authorization", "Bearer "}, absent},
		{"two headers", []string{"Authorization", "Bearer " + valid, "Authorization", "Bearer " + valid}, absent},
		{"rubbish", []string{"Authorization", "Bearer invalidToken"}, rejected},
		{"expired", []string{"Authorization", "Bearer " + signed("exp", now.Add(-time.Hour).Unix())}, rejected},
		{"other audience", []string{"Authorization", "Bearer " + signed("aud", "https://other.example.org")}, rejected},
		{"other issuer", []string{"Authorization", "Bearer " + signed("iss", "https://evil.example.org")}, rejected},
		{"alg none", []string{"Authorization", "Bearer " + w.issuer.sign(t,
			map[string]any{"alg": "none", "kid": "k1"}, claims("sub", "alice"))}, rejected},
		{"altered", []string{"Authorization", "Bearer " + valid[:len(valid)-8] + "AAAAAAAA"}, rejected},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, route := range routes {
				got := w.ask(route.method, route.path, test.headers...)
				if got.code != http.StatusUnauthorized || got.header.Get("WWW-Authenticate") != test.challenge {
					t.Errorf("%s %s: %d, WWW-Authenticate %q", route.method, route.path, got.code,
						got.header.Get("WWW-Authenticate"))
				}
				if route.method != "HEAD" {
					wantOutcome(t, got, http.StatusUnauthorized, "login", "Authorization")
				}
				if test.challenge == rejected && strings.Contains(got.body, strings.TrimPrefix(test.headers[1], "Bearer ")) {
					t.Errorf("the answer repeats the header: %s", got.body)
				}
			}
		})
	}
	// A token in the query string is none.
	got := w.ask("GET", groupExport+"?access_token="+valid)
	wantOutcome(t, got, http.StatusUnauthorized, "login")

	scheme := w.as("alice")
	scheme[1] = strings.Replace(scheme[1], "Bearer", "bEARER", 1)
	if got := w.ask("GET", groupExport, scheme...); got.code != http.StatusAccepted {
		t.Errorf("scheme in another case: %d %s", got.code, got.body)
	}
}

// An issuer that is down is a 503: the token may be good.
func TestAuthenticationIssuerDown(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.issuer.mu.Lock()
	w.issuer.down = true
	w.issuer.mu.Unlock()
	got := w.ask("GET", groupExport, slices.Clone(w.as("alice"))...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	if got.header.Get("Retry-After") == "" || got.header.Get("WWW-Authenticate") != "" {
		t.Errorf("Retry-After %q, WWW-Authenticate %q", got.header.Get("Retry-After"), got.header.Get("WWW-Authenticate"))
	}
}
