package httpapi_test

import (
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// The scopes of a token at the kick-off, by the rows of section 9 of the conformance checklist. TestAuthentication covers
// Z-01 and Z-02, TestHostileTokens Z-03, TestIsolationOfScopes Z-08 and TestIsolation Z-09.
func TestAuthorizationRows(t *testing.T) {
	t.Parallel()
	open := newFixture(t)
	strict := newFixture(t, func(c *httpapi.Config) { c.RequireGroupScope = true })
	const g1, g2, unknown = groupExport, "/fhir/Group/g2/$export", "/fhir/Group/g9/$export"
	for _, test := range []struct {
		row, name string
		w         *fixture
		subject   string
		scopes    string
		path      string
		status    int
		says      string   // in the refusal
		types     []string // of the job; nil: not looked at
	}{
		{"Z-04", "type outside the scopes", open, "alice", "system/Patient.rs", g1 + "?_type=Observation", 403, "Observation", nil},
		{"Z-04", "v1", open, "alice", "system/Patient.read", g1 + "?_type=Observation", 403, "Observation", nil},
		{"Z-05", "no type asked", open, "alice", "system/Patient.rs", g1, 202, "", []string{"Patient"}},
		{
			"Z-05", "no type asked, several scopes", open, "alice", "system/Patient.rs user/Condition.read", g1, 202, "",
			[]string{"Condition", "Patient"},
		},
		{
			"Z-06", "the grant takes types away", open, "carol", "system/*.read", g2, 202, "",
			[]string{"Condition", "Organization", "Patient"},
		},
		{"Z-06", "the grant takes the group away", open, "carol", "system/*.read", g1, 404, "Group", nil},
		{"Z-06", "no grant", open, "nobody", "system/*.read", g1, 404, "Group", nil},
		{"P-15", "the grant takes a type away", open, "carol", "system/*.read", g2 + "?_type=Patient,Observation", 403, "Observation", nil},
		{
			"P-15", "the scopes take types away", open, "carol", "system/Patient.rs system/Organization.rs", g2, 202, "",
			[]string{"Organization", "Patient"},
		},
		{"P-15", "both take types away", open, "carol", "system/Patient.rs system/Observation.rs", g2, 202, "", []string{"Patient"}},
		{"P-15", "a type that is never exported", open, "carol", "system/Patient.rs system/Group.rs", g2, 202, "", []string{"Patient"}},
		{"Z-13", "not for the other levels", strict, "alice", "system/Patient.rs", "/fhir/Patient/$export", 202, "", []string{"Patient"}},
		{"P-15", "only what others reference", open, "alice", "system/Practitioner.read", g1, 403, "No resource type", nil},
		{
			"Z-07", "several types", open, "alice", "system/Patient.rs", g1 + "?_type=Patient,Observation,Condition", 403,
			"Condition, Observation.", nil,
		},
		{"Z-07", "one of two types", open, "alice", "system/Patient.rs", g1 + "?_type=Patient,Observation", 403, "Observation", nil},
		{
			"Z-07", "one of two types, lenient", open, "alice", "system/Patient.rs",
			g1 + "?_type=Patient&_type=Observation", 403, "Observation", nil,
		},
		{"Z-10", "a granular scope alone", open, "alice", "system/Observation.rs?category=laboratory", g1, 401, "token", nil},
		{
			"Z-10", "a granular scope beside a whole one", open, "alice", "system/*.rs system/Observation.rs?category=laboratory",
			g1 + "?_type=Patient", 401, "token", nil,
		},
		{"Z-11", "search only", open, "alice", "system/Patient.s", g1 + "?_type=Patient", 403, "Patient", nil},
		{"Z-11", "search only, no type asked", open, "alice", "system/Patient.s", g1, 403, "No resource type", nil},
		{"Z-11", "read alone", open, "alice", "system/Patient.r", g1, 202, "", []string{"Patient"}},
		{"Z-11", "all letters", open, "alice", "system/Patient.cruds", g1, 202, "", []string{"Patient"}},
		{"Z-11", "v1, all", open, "alice", "system/Patient.*", g1, 202, "", []string{"Patient"}},
		{"Z-11", "v1, write", open, "alice", "system/Patient.write", g1, 403, "No resource type", nil},
		{"Z-11", "all letters but one", open, "alice", "system/Patient.cuds", g1, 403, "No resource type", nil},
		{"Z-11", "letters out of order", open, "alice", "system/Patient.sr", g1, 403, "No resource type", nil},
		{"Z-11", "in another case", open, "alice", "SYSTEM/Patient.rs system/patient.rs", g1, 403, "No resource type", nil},
		{"Z-12", "patient scopes", open, "alice", "patient/*.rs patient/Patient.read", g1, 403, "No resource type", nil},
		{"Z-12", "user scopes, with a grant", open, "alice", "user/Patient.rs", g1, 202, "", []string{"Patient"}},
		{"Z-12", "user scopes, without a grant", open, "nobody", "user/*.rs", g1, 404, "Group", nil},
		{"Z-12", "no resource scopes", open, "alice", "openid fhirUser launch", g1, 403, "No resource type", nil},
		{"Z-12", "no scopes", open, "alice", "", g1, 403, "No resource type", nil},
		{"Z-13", "not required", open, "alice", "system/Patient.rs", g1, 202, "", []string{"Patient"}},
		{"Z-13", "no Group scope", strict, "alice", "system/Patient.rs system/Observation.rs", g1, 403, "Group", nil},
		{"Z-13", "Group search only", strict, "alice", "system/Patient.rs system/Group.s", g1, 403, "Group", nil},
		{"Z-13", "Group of a patient", strict, "alice", "system/Patient.rs patient/Group.rs", g1, 403, "Group", nil},
		{"Z-13", "no Group scope, unknown group", strict, "alice", "system/Patient.rs", unknown, 403, "Group", nil},
		{"Z-13", "a Group scope", strict, "alice", "system/Patient.rs system/Group.rs", g1, 202, "", []string{"Patient"}},
		{"Z-13", "a Group scope of v1", strict, "alice", "user/Patient.read user/Group.read", g1, 202, "", []string{"Patient"}},
		{"Z-13", "all types", strict, "alice", "system/*.rs", g1 + "?_type=Patient", 202, "", []string{"Patient"}},
		{"Z-13", "a Group scope alone", strict, "alice", "system/Group.rs", g1, 403, "No resource type", nil},
	} {
		t.Run(test.row+" "+test.name, func(t *testing.T) {
			w := test.w
			before := w.active()
			got := w.ask("GET", test.path, w.as(test.subject, test.scopes)...)
			if test.status != http.StatusAccepted {
				code := map[int]string{401: "login", 403: "forbidden", 404: "not-found"}[test.status]
				wantOutcome(t, got, test.status, code, test.says)
				if n := w.active(); n != before {
					t.Errorf("%d jobs were started", n-before)
				}
				return
			}
			if job := w.job(w.started(got)); !slices.Equal(job.Request.Types, test.types) {
				t.Errorf("exports %q, want %q", job.Request.Types, test.types)
			}
		})
	}
}

// An opaque token is introspected (RFC 7662): an active token is accepted, an inactive one gets the 401 of an invalid
// token, and without a response of the issuer the status is 503, because the token may be valid. pkg/token has the other
// responses.
func TestOpaqueTokens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const opaqueIssuer = "https://opaque.example.org"
	ofOther := w.kickoff(w.as("alice"), "")
	issuer := tokentest.ServeKeys(t, "")
	issuer.Handle(func(rw http.ResponseWriter, r *http.Request) {
		answer := tokentest.Members{
			"active": true, "iss": opaqueIssuer, "sub": "alice", "exp": w.clock.Now().Add(time.Hour).Unix(),
			"username": "root", "aud": audience, "scope": "system/*.rs",
		}
		switch r.FormValue("token") {
		case "good":
		case "narrow":
			answer["scope"] = "system/Patient.rs"
		case "down":
			rw.WriteHeader(http.StatusInternalServerError)
		default:
			answer["active"] = false
		}
		_, _ = io.WriteString(rw, answer.String())
	})
	tokens, err := token.NewVerifier(token.Config{
		Issuers: []token.Issuer{{
			Name: opaqueIssuer, Audiences: []string{audience},
			Introspection: &token.Introspection{URL: issuer.URL, ClientID: "c", ClientSecret: "s"},
		}},
		Now: w.clock.Now,
	})
	must(t, err)
	defer tokens.Close()
	w.deps.Tokens, w.deps.Registry = tokens, prometheus.NewRegistry()
	w.deps.Access = filedir.AllowOnly(export.Owner{Issuer: opaqueIssuer, Subject: "alice"})
	w.handler, err = httpapi.New(w.config(), w.deps)
	must(t, err)
	ask := func(target, token string) reply { return w.serve("GET", target, "Authorization", "Bearer "+token) }
	const observations = groupExport + "?_type=Observation"
	w.started(ask(observations, "good"))
	wantOutcome(t, ask(observations, "narrow"), http.StatusForbidden, "forbidden")
	made := ask(observations, "made-up")
	wantOutcome(t, made, http.StatusUnauthorized, "login")
	wantHeader(t, made, "WWW-Authenticate", `Bearer error="invalid_token"`, "Retry-After", "")
	down := ask(observations, "down")
	wantOutcome(t, down, http.StatusServiceUnavailable, "transient")
	wantHeader(t, down, "WWW-Authenticate", "", "Retry-After", "5")
	// The same subject of another issuer is another owner.
	wantOutcome(t, ask(statusPath(ofOther), "good"), http.StatusNotFound, "forbidden")
}
