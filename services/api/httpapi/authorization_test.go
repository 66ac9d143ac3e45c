package httpapi_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// What a token's scopes allow at the kick-off, by the rows of the conformance checklist (section 9). Rows Z-01 and Z-02
// are TestAuthentication's, Z-03 TestHostileTokens', Z-08 TestStatusNarrowToken's and Z-09 TestNotAvailable's.
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
			before := test.w.active()
			got := test.w.ask("GET", test.path, test.w.as(test.subject, test.scopes)...)
			if test.status != http.StatusAccepted {
				code := map[int]string{401: "login", 403: "forbidden", 404: "not-found"}[test.status]
				wantOutcome(t, got, test.status, code, test.says)
				if n := test.w.active(); n != before {
					t.Errorf("%d jobs were started", n-before)
				}
				return
			}
			if got.code != http.StatusAccepted {
				t.Fatalf("%d %s", got.code, got.body)
			}
			id := export.JobID(strings.TrimPrefix(got.header.Get("Content-Location"), base+"/exports/"))
			job, err := test.w.jobs.Job(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(job.Request.Types, test.types) {
				t.Errorf("exports %q, want %q", job.Request.Types, test.types)
			}
		})
	}
}

// hostile are tokens that must not be accepted, from tokens that are.
func hostile(t *testing.T, w *fixture) map[string]string {
	t.Helper()
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	now := w.clock.Now()
	claims := func(change ...any) string { // names and values; a nil value takes the claim away
		all := map[string]any{
			"iss": "https://one.example.org", "sub": "alice", "aud": audience, "iat": now.Unix(), "nbf": now.Unix(),
			"exp": now.Add(5 * time.Minute).Unix(), "scope": "system/*.read",
		}
		for i := 0; i < len(change); i += 2 {
			all[change[i].(string)] = change[i+1]
			if change[i+1] == nil {
				delete(all, change[i].(string))
			}
		}
		encoded, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(encoded)
	}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signedBy := func(key *rsa.PrivateKey, header, payload string) string {
		input := part(header) + "." + part(payload)
		digest := crypto.SHA384.New()
		digest.Write([]byte(input))
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA384, digest.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		return input + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
	mac := func(key []byte, header string) string {
		input := part(header) + "." + part(claims())
		sum := hmac.New(sha256.New, key)
		sum.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
	}
	const header = `{"alg":"RS384","typ":"JWT","kid":"k1"}`
	payload := func(p string) string { return signedBy(w.issuer.key, header, p) }
	headed := func(h string) string { return signedBy(w.issuer.key, h, claims()) }
	with := func(change ...any) string { return payload(claims(change...)) }
	literal := func(name, value string) string { // a claim spelled by hand
		return payload(strings.TrimSuffix(claims(name, nil), "}") + `,"` + name + `":` + value + `}`)
	}
	der, err := x509.MarshalPKIXPublicKey(w.issuer.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	modulus := base64.RawURLEncoding.EncodeToString(stranger.N.Bytes())
	ownKey := `{"kty":"RSA","kid":"k1","n":"` + modulus + `","e":"AQAB"}`
	good := payload(claims())
	parts := strings.Split(good, ".")
	other := strings.Split(with("sub", "mallory"), ".")
	unix := func(d time.Duration) int64 { return now.Add(d).Unix() }
	return map[string]string{
		"a word":                      "invalidToken",
		"null":                        "null",
		"dots":                        "..",
		"one dot":                     parts[0] + "." + parts[1],
		"four parts":                  good + "." + parts[2],
		"five parts":                  good + "." + parts[2] + "." + parts[2],
		"two tokens":                  good + "," + good,
		"two tokens, a blank":         good + " " + good,
		"Bearer twice":                "Bearer " + good,
		"a parameter":                 `token="` + good + `"`,
		"padding":                     good + "=",
		"standard base64":             parts[0] + "+/." + parts[1] + "." + parts[2],
		"percent-encoded":             strings.ReplaceAll(good, ".", "%2E"),
		"in angle brackets":           "<" + good + ">",
		"not ASCII":                   good + "é",
		"not UTF-8":                   good + "\xff",
		"in upper case":               strings.ToUpper(good),
		"16 KiB":                      with("pad", strings.Repeat("x", 16<<10)),
		"signature missing":           parts[0] + "." + parts[1] + ".",
		"signature of zeros":          parts[0] + "." + parts[1] + "." + part(strings.Repeat("\x00", 256)),
		"signature of another token":  parts[0] + "." + parts[1] + "." + other[2],
		"signature cut":               good[:len(good)-4],
		"signature altered":           good[:len(good)-8] + "AAAAAAAA",
		"payload of another token":    parts[0] + "." + other[1] + "." + parts[2],
		"payload altered":             parts[0] + "." + part(claims("sub", "bob")) + "." + parts[2],
		"scope altered":               parts[0] + "." + part(claims("scope", "system/*.cruds")) + "." + parts[2],
		"header altered":              part(`{"alg":"RS384","typ":"jwt","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"another key":                 signedBy(stranger, header, claims()),
		"another key, embedded":       signedBy(stranger, `{"alg":"RS384","kid":"k1","jwk":`+ownKey+`}`, claims()),
		"another key, jku":            signedBy(stranger, `{"alg":"RS384","kid":"x","jku":"http://127.0.0.1:1/"}`, claims()),
		"another key, x5u":            signedBy(stranger, `{"alg":"RS384","kid":"x","x5u":"http://127.0.0.1:1/"}`, claims()),
		"alg none":                    part(`{"alg":"none"}`) + "." + parts[1] + ".",
		"alg none, signature kept":    part(`{"alg":"none","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"alg NONE":                    part(`{"alg":"NONE","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"alg missing":                 headed(`{"kid":"k1"}`),
		"alg empty":                   headed(`{"alg":"","kid":"k1"}`),
		"alg null":                    headed(`{"alg":null,"kid":"k1"}`),
		"alg twice":                   headed(`{"alg":"RS384","kid":"k1","alg":"none"}`),
		"alg of another hash":         headed(`{"alg":"RS256","kid":"k1"}`),
		"alg RS512":                   headed(`{"alg":"RS512","kid":"k1"}`),
		"alg PS384":                   headed(`{"alg":"PS384","kid":"k1"}`),
		"alg ES384":                   headed(`{"alg":"ES384","kid":"k1"}`),
		"HS256 with the public key":   mac(der, `{"alg":"HS256","kid":"k1"}`),
		"HS256 with the modulus":      mac(w.issuer.key.N.Bytes(), `{"alg":"HS256","kid":"k1"}`),
		"HS256 without a secret":      mac(nil, `{"alg":"HS256","kid":"k1"}`),
		"kid unknown":                 headed(`{"alg":"RS384","kid":"k2"}`),
		"kid empty":                   headed(`{"alg":"RS384","kid":""}`),
		"kid a number":                headed(`{"alg":"RS384","kid":1}`),
		"kid of a file":               headed(`{"alg":"RS384","kid":"../../dev/null"}`),
		"crit":                        headed(`{"alg":"RS384","kid":"k1","crit":["exp"]}`),
		"b64 false":                   headed(`{"alg":"RS384","kid":"k1","b64":false}`),
		"cty JWT":                     headed(`{"alg":"RS384","kid":"k1","cty":"JWT"}`),
		"nested":                      payload(`"` + good + `"`),
		"compressed":                  headed(`{"alg":"RS384","kid":"k1","zip":"DEF"}`),
		"encrypted by its header":     headed(`{"alg":"RS384","kid":"k1","enc":"A256GCM"}`),
		"logout token":                headed(`{"alg":"RS384","kid":"k1","typ":"logout+jwt"}`),
		"client assertion by its typ": headed(`{"alg":"RS384","kid":"k1","typ":"client-authentication+jwt"}`),
		"header an array":             headed(`[]`),
		"payload no JSON":             payload("claims"),
		"payload an array":            payload("[" + claims() + "]"),
		"payload twice":               payload(claims() + claims()),
		"payload empty":               payload("{}"),
		"payload not UTF-8":           payload(strings.Replace(claims(), "alice", "ali\xffce", 1)),
		"iss of nobody":               with("iss", "https://evil.example.org"),
		"iss with a slash":            with("iss", "https://one.example.org/"),
		"iss in upper case":           with("iss", "HTTPS://ONE.EXAMPLE.ORG"),
		"iss missing":                 with("iss", nil),
		"iss an array":                with("iss", []string{"https://one.example.org"}),
		"iss twice":                   payload(strings.TrimSuffix(claims(), "}") + `,"iss":"https://two.example.org"}`),
		"aud of another service":      with("aud", "https://other.example.org"),
		"aud with a slash":            with("aud", audience+"/"),
		"aud with ours as a prefix":   with("aud", audience+".evil.example.org"),
		"aud missing":                 with("aud", nil),
		"aud empty":                   with("aud", []string{}),
		"aud an object":               with("aud", map[string]string{"a": audience}),
		"sub missing":                 with("sub", nil),
		"sub empty":                   with("sub", ""),
		"sub an array":                with("sub", []string{"alice"}),
		"sub a number":                with("sub", 1),
		"sub twice":                   payload(strings.TrimSuffix(claims(), "}") + `,"sub":"bob"}`),
		"sub with a NUL":              literal("sub", `"alice\u0000"`),
		"sub of half a character":     literal("sub", `"alice\ud800"`),
		"sub very long":               with("sub", strings.Repeat("a", 1025)),
		"exp missing":                 with("exp", nil),
		"expired just now":            with("exp", unix(-time.Minute)),
		"expired long ago":            with("exp", unix(-1000*time.Hour)),
		"exp a string":                with("exp", "9999999999"),
		"exp with a fraction":         literal("exp", "9999999999.5"),
		"exp in milliseconds":         literal("exp", fmt.Sprint(now.Add(time.Minute).UnixMilli())),
		"exp beyond all numbers":      literal("exp", "1e400"),
		"exp twice":                   payload(strings.TrimSuffix(claims(), "}") + `,"exp":9999999999}`),
		"nbf ahead":                   with("nbf", unix(2*time.Minute)),
		"nbf a string":                with("nbf", "0"),
		"iat ahead":                   with("iat", unix(2*time.Minute)),
		"bound to a key":              with("cnf", map[string]string{"x5t#S256": "made-up"}),
		"scope an object":             with("scope", map[string]bool{"system/*.read": true}),
		"scope a number":              with("scope", 1),
		"scope with a query":          with("scope", "system/*.read system/Observation.rs?code=1"),
	}
}

// Z-03: one answer to every token that is not good, byte by byte, whatever is wrong with it and wherever it is
// brought (RFC 6750 section 3.1). None is obeyed, none is logged, and none makes the API ask an address in it.
func TestHostileTokens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	routes := []struct{ method, path string }{{"GET", groupExport}, {"GET", statusPath(id)}, {"DELETE", statusPath(id)}}
	var first string
	tokens := hostile(t, w)
	for name, raw := range tokens {
		t.Run(name, func(t *testing.T) {
			for _, route := range routes {
				got := w.ask(route.method, route.path, "Authorization", "Bearer "+raw)
				wantOutcome(t, got, http.StatusUnauthorized, "login", "invalid or expired")
				if challenge := got.header.Values("WWW-Authenticate"); len(challenge) != 1 ||
					challenge[0] != `Bearer error="invalid_token"` {
					t.Errorf("%s: WWW-Authenticate %q", route.method, challenge)
				}
				if first == "" {
					first = got.body
				}
				if got.body != first {
					t.Errorf("%s: %s, want %s", route.method, got.body, first)
				}
			}
		})
	}
	if n := w.active(); n != 1 {
		t.Errorf("%d jobs are active, want the one there was", n)
	}
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("the owner's own token afterwards: %d %s", got.code, got.body)
	}
	log := w.log.String()
	for _, word := range []string{"eyJ", "invalidToken", "mallory", "127.0.0.1:1/"} {
		if strings.Contains(log, word) {
			t.Errorf("the log shows %q", word)
		}
	}
}

// A token that only its issuer can read is asked about (RFC 7662): yes is obeyed, no is the 401 of every bad token, and no
// answer is a 503, for the token may be good.
func TestOpaqueTokens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	var asked atomic.Int64
	answers := map[string]string{}
	for raw, change := range map[string]string{
		"good": "", "narrow": `,"scope":"system/Patient.rs"`, "elsewhere": `,"aud":"https://other.example.org"`,
	} {
		fields := `{"active":true,"iss":"https://opaque.example.org","sub":"alice","exp":%d,"username":"root"`
		if !strings.Contains(change, "aud") {
			fields += `,"aud":"` + audience + `"`
		}
		if !strings.Contains(change, "scope") {
			fields += `,"scope":"system/*.rs"`
		}
		answers[raw] = fmt.Sprintf(fields, w.clock.Now().Add(time.Hour).Unix()) + change + "}"
	}
	issuer := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch answer, there := answers[r.FormValue("token")]; {
		case there:
			_, _ = io.WriteString(rw, answer)
		case r.FormValue("token") == "down":
			rw.WriteHeader(http.StatusInternalServerError)
		default:
			_, _ = io.WriteString(rw, `{"active":false}`)
		}
	}))
	defer issuer.Close()
	tokens, err := token.NewVerifier(token.Config{
		Issuers: []token.Issuer{
			{
				Name: "https://opaque.example.org", Audiences: []string{audience},
				Introspection: &token.Introspection{URL: issuer.URL, ClientID: "c", ClientSecret: "s"},
			},
			{Name: "https://one.example.org", Audiences: []string{audience}, JWKSURL: w.issuer.jwks.URL},
		},
		Now: w.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	deps := w.deps
	deps.Tokens, deps.Registry = tokens, prometheus.NewRegistry()
	deps.Access = filedir.AllowOnly(export.Owner{Issuer: "https://opaque.example.org", Subject: "alice"})
	handler, err := httpapi.New(httpapi.Config{BaseURL: mustURL(t, base), Now: w.clock.Now}, deps)
	if err != nil {
		t.Fatal(err)
	}
	ofOther := w.kickoff(w.as("alice"), "") // before the change
	w.server.Close()
	w.server = httptest.NewServer(handler)
	if got := w.ask("GET", statusPath(ofOther), w.as("alice")...); got.code != http.StatusAccepted || asked.Load() != 0 {
		t.Errorf("a signed token: %d, asked about %d times", got.code, asked.Load())
	}

	for _, test := range []struct {
		name, token string
		status      int
		asked       int64
	}{
		{"good", "good", http.StatusAccepted, 1},
		{"good again", "good", http.StatusAccepted, 0},
		{"of one type", "narrow", http.StatusForbidden, 1},
		{"for another service", "elsewhere", http.StatusUnauthorized, 1},
		{"unknown", "made-up", http.StatusUnauthorized, 1},
		{"unknown again", "made-up", http.StatusUnauthorized, 0},
		{"no token by its characters", "made up", http.StatusUnauthorized, 0},
		{"another issuer's", w.issuer.token(t, "https://two.example.org", "alice"), http.StatusUnauthorized, 0},
		{"down", "down", http.StatusServiceUnavailable, 1},
		{"down again", "down", http.StatusServiceUnavailable, 1},
	} {
		before := asked.Load()
		got := w.ask("GET", groupExport+"?_type=Observation", "Authorization", "Bearer "+test.token)
		if code := map[int]string{401: "login", 403: "forbidden", 503: "transient"}[test.status]; code != "" {
			wantOutcome(t, got, test.status, code)
		} else if got.code != test.status {
			t.Errorf("%s: %d %s", test.name, got.code, got.body)
		}
		if n := asked.Load() - before; n != test.asked {
			t.Errorf("%s: the issuer was asked %d times, want %d", test.name, n, test.asked)
		}
		if (got.header.Get("Retry-After") != "") != (test.status == http.StatusServiceUnavailable) {
			t.Errorf("%s: Retry-After %q", test.name, got.header.Get("Retry-After"))
		}
		if challenge := got.header.Get("WWW-Authenticate"); (challenge == `Bearer error="invalid_token"`) !=
			(test.status == http.StatusUnauthorized) {
			t.Errorf("%s: WWW-Authenticate %q", test.name, challenge)
		}
	}
	// The same subject of another issuer is somebody else.
	got := w.ask("GET", statusPath(ofOther), "Authorization", "Bearer good")
	wantOutcome(t, got, http.StatusNotFound, "forbidden")
}
