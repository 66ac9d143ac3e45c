package httpapi_test

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// emptyBody is the body of a POST without parameters.
const emptyBody = `{"resourceType":"Parameters","parameter":[]}`

// post sends a kick-off with a body.
func (w *fixture) post(target, parameters string, headers ...string) reply {
	w.t.Helper()
	return w.ask("POST", target, append(slices.Clone(headers), "Content-Type", "application/fhir+json", bodyKey, parameters)...)
}

// K-05, K-06, L-01 to L-03: GET and POST start an export at every level, in both spellings. M-02: the request URL has the
// client's spelling and query, and nothing of the body.
func TestLevels(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice", "system/Patient.rs")
	for path, want := range map[string]export.Request{
		"/":          {Level: export.SystemLevel},
		"/Patient/":  {Level: export.PatientLevel},
		"/Group/g1/": {Level: export.GroupLevel, GroupID: "g1"},
	} {
		for _, spelling := range []string{"$export", "%24export"} {
			target := path + spelling + "?_outputFormat=ndjson"
			want.URL, want.Types, want.Dialect = base+target, []string{"Patient"}, export.Classic
			for method, got := range map[string]reply{
				"GET": w.ask("GET", "/fhir"+target, alice...), "POST": w.post("/fhir"+target, emptyBody, alice...),
				"POST of a parameter": w.post("/fhir"+target,
					`{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"}]}`, alice...),
			} {
				if job := w.job(w.started(got)); !reflect.DeepEqual(job.Request, want) || got.body != "" {
					t.Errorf("%s %s: %+v, want %+v", method, target, job.Request, want)
				}
			}
		}
	}
}

// L-03: the system level has every stored type. P-15: without `_type` those that scopes and grant allow, but AuditEvent and
// Binary. P-17: types that travel along alone are exported through the others that the owner may export.
func TestTypesOfTheLevels(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const system, patient = "/fhir/$export", "/fhir/Patient/$export"
	whole := slices.DeleteFunc(fhir.StoredTypes(), func(typ string) bool { return typ == "AuditEvent" || typ == "Binary" })
	beside := func(names ...string) []string {
		return slices.DeleteFunc(fhir.ExportableTypes(), func(typ string) bool { return slices.Contains(names, typ) })
	}
	for name, test := range map[string]struct {
		scopes, target string
		types, through []string
	}{
		"all, system":         {"system/*.rs", system, whole, nil},
		"all, patient":        {"system/*.rs", patient, fhir.ExportableTypes(), nil},
		"by scopes":           {"system/Binary.rs system/ValueSet.rs system/Group.rs", system, []string{"Group", "ValueSet"}, nil},
		"named":               {"system/*.rs", system + "?_type=Binary,AuditEvent", []string{"AuditEvent", "Binary"}, nil},
		"no patient's":        {"system/*.rs", system + "?_type=Organization", []string{"Organization"}, nil},
		"P-17 one":            {"system/*.rs", patient + "?_type=Practitioner", []string{"Practitioner"}, beside("Practitioner")},
		"P-17 group":          {"system/*.rs", groupExport + "?_type=Location", []string{"Location"}, beside("Location")},
		"P-17 by scopes":      {"system/Practitioner.rs system/Encounter.rs", patient + "?_type=Practitioner", []string{"Practitioner"}, []string{"Encounter"}},
		"P-17 nothing else":   {"system/Practitioner.rs", patient + "?_type=Practitioner", []string{"Practitioner"}, nil},
		"P-17 beside another": {"system/*.rs", patient + "?_type=Practitioner,Patient", []string{"Patient", "Practitioner"}, nil},
	} {
		request := w.job(w.started(w.ask("GET", test.target, w.as("alice", test.scopes)...))).Request
		if !slices.Equal(request.Types, test.types) || !slices.Equal(request.Through, test.through) {
			t.Errorf("%s: %q through %q, want %q through %q", name, request.Types, request.Through, test.types, test.through)
		}
	}
	for name, test := range map[string]struct {
		scopes, target string
		status         int
		code, word     string
	}{
		"never stored":              {"system/*.rs", system + "?_type=Bundle,Patient", 400, "not-supported", "Bundle"},
		"not of patients":           {"system/*.rs", patient + "?_type=Group,Patient", 400, "not-supported", "Group"},
		"unknown":                   {"system/*.rs", system + "?_type=Nonsense", 400, "invalid", "Nonsense"},
		"scopes":                    {"system/Patient.rs", system + "?_type=ValueSet", 403, "forbidden", "ValueSet"},
		"only what is to be named":  {"system/Binary.rs system/AuditEvent.rs", system, 403, "forbidden", "No resource type"},
		"only what others refer to": {"system/Practitioner.rs", patient, 403, "forbidden", "No resource type"},
	} {
		got := w.ask("GET", test.target, append(w.as("alice", test.scopes), "Prefer", "respond-async")...)
		wantOutcome(t, got, test.status, test.code, test.word)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// The levels of the grant decide, in each method, lenient or not: a foreign owner learns neither whether a group exists nor
// what the server holds, and nothing is stored or looked up.
func TestIsolationOfLevels(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	groups := map[string]reply{}
	kickoffs := func(target string, headers []string) map[string]reply {
		lenient := append(slices.Clone(headers), "Prefer", "handling=lenient")
		const patient = `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/p1"}}]}`
		answers := map[string]reply{
			"GET": w.ask("GET", target, headers...), "lenient GET": w.ask("GET", target, lenient...),
			"POST": w.post(target, emptyBody, headers...), "lenient POST": w.post(target, emptyBody, lenient...),
		}
		if target != "/fhir/$export" {
			answers["POST with a patient"] = w.post(target, patient, headers...)
		}
		return answers
	}
	w.users.exists = func(string) error { t.Error("a group was looked up"); return nil }
	w.users.Groups.Held = nil
	before := w.active()
	for caller, levels := range map[string][]string{"carol": {"system", "patient"}, "nobody": {"system", "patient"}, "erin": {"system"}} {
		for _, level := range levels {
			target := "/fhir/" + map[string]string{"patient": "Patient/"}[level] + "$export"
			answers := kickoffs(target, w.as(caller))
			wantSame(t, answers)
			wantOutcome(t, answers["GET"], http.StatusForbidden, "forbidden", level+" level")
		}
	}
	for _, group := range []string{"g1", "g9"} { // erin may export the patient level alone
		for name, got := range kickoffs("/fhir/Group/"+group+"/$export", w.as("erin")) {
			groups[group+" "+name] = got
		}
	}
	wantSame(t, groups)
	wantOutcome(t, groups["g1 GET"], http.StatusNotFound, "not-found", "no such Group")
	if n := w.active(); n != before {
		t.Errorf("%d jobs were started", n-before)
	}
	w.started(w.ask("GET", "/fhir/Patient/$export", w.as("erin")...)) // so that the refusals are of the levels
}

// A kick-off without a token is the same 401 at every level, and its body is not read.
func TestKickOffsNeedAToken(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for _, target := range []string{"/fhir/$export", "/fhir/Patient/$export", groupExport} {
		for _, got := range []reply{
			w.ask("GET", target), w.post(target, emptyBody), w.post(target, "x"),
			w.post(target, strings.Repeat("x", 100_000)),
		} {
			wantOutcome(t, got, http.StatusUnauthorized, "login")
		}
	}
}
