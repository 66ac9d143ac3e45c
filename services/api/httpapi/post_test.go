package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// withParameters returns a Parameters resource with the entries.
func withParameters(entries ...string) string {
	return `{"resourceType":"Parameters","parameter":[` + strings.Join(entries, ",") + `]}`
}

// P-40: every value[x] that a client library sends, with content types and members that clients use. The body means what the
// query string means.
func TestPostParameters(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for name, test := range map[string]struct {
		query, body string
		types       []string
	}{
		"valueString":       {"", withParameters(`{"name":"_type","valueString":"Patient,Observation"}`), []string{"Observation", "Patient"}},
		"valueCode":         {"", withParameters(`{"name":"_type","valueCode":"Patient"}`), []string{"Patient"}},
		"valueUri":          {"", withParameters(`{"name":"_type","valueUri":"Patient"}`), []string{"Patient"}},
		"valueCanonical":    {"", withParameters(`{"name":"_type","valueCanonical":"Patient"}`), []string{"Patient"}},
		"value before name": {"", withParameters(`{"valueCode":"Patient","name":"_type"}`), []string{"Patient"}},
		"K-14 repeats": {
			"", withParameters(`{"name":"_type","valueCode":"Patient"}`, `{"name":"_type","valueString":"Condition, Patient"}`),
			[]string{"Condition", "Patient"},
		},
		"formats": {
			"", withParameters(`{"name":"_outputFormat","valueString":"application/fhir+ndjson"}`,
				`{"name":"_type","valueString":"Patient"}`, `{"name":"_pretty","valueBoolean":true}`), []string{"Patient"},
		},
		"beside a query": {"?_outputFormat=ndjson", withParameters(`{"name":"_type","valueCode":"Patient"}`), []string{"Patient"}},
		"members of every resource": {
			"?_type=Patient", `{"id":"x","meta":{"profile":["urn:x"]},"language":"en","resourceType":"Parameters"}`, []string{"Patient"},
		},
		"members of every element": {
			"", withParameters(`{"id":"x","extension":[{"url":"urn:x","valueString":"Group"}],"name":"_type","_name":{"id":"y"},` +
				`"valueCode":"Patient","_valueCode":{"id":"z"}}`), []string{"Patient"},
		},
		"byte order mark": {"", "\xef\xbb\xbf" + withParameters(`{"name":"_type","valueCode":"Patient"}`), []string{"Patient"}},
		"escaped":         {"", withParameters(`{"n\u0061me":"_type","valueCode":"Pati\u0065nt"}`), []string{"Patient"}},
	} {
		for _, kind := range []string{"application/fhir+json", "application/json", "Application/FHIR+JSON; charset=UTF-8; fhirVersion=4.0"} {
			got := w.ask("POST", groupExport+test.query, append(slices.Clone(alice), "Content-Type", kind, bodyKey, test.body)...)
			request := w.job(w.started(got)).Request
			if !slices.Equal(request.Types, test.types) || request.URL != base+"/Group/g1/$export"+test.query {
				t.Errorf("%s: %q of %s, want %q", name, request.Types, request.URL, test.types)
			}
		}
	}
}

// K-07, P-40, P-41: every other body is refused, with the parameter named and without a value of it, and also when lenient:
// what is not understood might limit the export.
func TestPostRefusals(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const secret = "s3cr3t"
	entry := func(text string) string { return withParameters(text) }
	tests := map[string]struct {
		query, body string
		words       []string
	}{
		"no body":                {"", "", []string{"body", "JSON"}},
		"no JSON":                {"", secret, []string{"body", "JSON"}},
		"cut":                    {"", `{"resourceType":"Parameters","parameter":[`, []string{"JSON"}},
		"two":                    {"", emptyBody + emptyBody, []string{"JSON"}},
		"no object":              {"", `["Parameters"]`, []string{"Parameters"}},
		"null":                   {"", `null`, []string{"Parameters"}},
		"no type":                {"", `{"parameter":[]}`, []string{"Parameters"}},
		"another resource":       {"", `{"resourceType":"Patient","id":"` + secret + `"}`, []string{"Parameters"}},
		"a type twice":           {"", `{"resourceType":"Parameters","resourceType":"Parameters"}`, []string{"twice"}},
		"parameters twice":       {"", `{"resourceType":"Parameters","parameter":[],"parameter":[]}`, []string{"twice"}},
		"misspelt":               {"", `{"resourceType":"Parameters","parameters":[]}`, []string{"not one of a Parameters"}},
		"no array":               {"", `{"resourceType":"Parameters","parameter":{"name":"_type"}}`, []string{"array"}},
		"null for the array":     {"", `{"resourceType":"Parameters","parameter":null}`, []string{"array"}},
		"no name":                {"", entry(`{"valueString":"` + secret + `"}`), []string{"without a name"}},
		"name is a number":       {"", entry(`{"name":5,"valueString":"x"}`), []string{"without a name"}},
		"entry is a string":      {"", entry(`"` + secret + `"`), []string{"without a name"}},
		"a name twice":           {"", entry(`{"name":"_type","name":"_type","valueCode":"Patient"}`), []string{"_type", "twice"}},
		"a value twice":          {"", entry(`{"name":"_type","valueCode":"Patient","valueCode":"Group"}`), []string{"_type", "twice"}},
		"two values":             {"", entry(`{"name":"_type","valueCode":"Patient","valueString":"Patient"}`), []string{"_type", "one value"}},
		"no value":               {"", entry(`{"name":"_type"}`), []string{"_type", "one value"}},
		"only an extension":      {"", entry(`{"name":"_type","_valueCode":{"id":"x"}}`), []string{"_type", "one value"}},
		"another value":          {"", entry(`{"name":"_type","valueInteger":5}`), []string{"_type", "valueString"}},
		"a coding":               {"", entry(`{"name":"_type","valueCoding":{"code":"` + secret + `"}}`), []string{"_type", "valueString"}},
		"a number in a string":   {"", entry(`{"name":"_type","valueString":5}`), []string{"_type", "valueString"}},
		"null value":             {"", entry(`{"name":"_type","valueString":null}`), []string{"_type", "valueString"}},
		"a boolean in a string":  {"", entry(`{"name":"_pretty","valueBoolean":"true"}`), []string{"_pretty", "valueBoolean"}},
		"nested":                 {"", entry(`{"name":"_type","part":[{"name":"x","valueCode":"Patient"}]}`), []string{"_type", "part"}},
		"a resource":             {"", entry(`{"name":"patient","resource":{"resourceType":"Patient","id":"` + secret + `"}}`), []string{"patient", "resource"}},
		"a modifier":             {"", entry(`{"name":"_type","valueCode":"Patient","modifierExtension":[]}`), []string{"_type", "modifierExtension"}},
		"an unknown member":      {"", entry(`{"name":"_type","valueCode":"Patient","` + secret + `":1}`), []string{"_type"}},
		"an empty type":          {"", entry(`{"name":"_type","valueCode":""}`), []string{"_type", "empty name"}},
		"a string for a patient": {"", entry(`{"name":"patient","valueString":"Patient/` + secret + `"}`), []string{"patient", "valueReference"}},
		"P-41 in both":           {"?_type=Patient", entry(`{"name":"_type","valueCode":"Patient"}`), []string{"_type", "query string", "body"}},
		"P-41 an unknown one":    {"?x=1", entry(`{"name":"x","valueCode":"Patient"}`), []string{"x", "query string", "body"}},
		"K-19":                   {"", entry(`{"name":"_outputFormat","valueCode":"ndjson"},{"name":"_outputFormat","valueCode":"application/ndjson"}`), []string{"_outputFormat", "twice"}},
		"P-06":                   {"", entry(`{"name":"_outputFormat","valueString":"text/html"}`), []string{"_outputFormat"}},
	}
	for _, prefer := range []string{"handling=strict", "handling=lenient"} {
		for name, test := range tests {
			got := w.post(groupExport+test.query, test.body, append(w.as("alice"), "Prefer", prefer)...)
			if got.code != http.StatusBadRequest || strings.Contains(got.body, secret) {
				t.Fatalf("%s, %s: %d %s", name, prefer, got.code, got.body)
			}
			wantOutcome(t, got, http.StatusBadRequest, "", test.words...)
		}
	}
	for _, kind := range []string{"", "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/", "application/fhir+ndjson"} {
		got := w.ask("POST", groupExport, append(w.as("alice"), "Content-Type", kind, bodyKey, emptyBody)...)
		wantOutcome(t, got, http.StatusUnsupportedMediaType, "not-supported", "Content-Type", "application/fhir+json")
	}
	got := w.post(groupExport, emptyBody, append(w.as("alice"), "Content-Encoding", "gzip")...)
	wantOutcome(t, got, http.StatusUnsupportedMediaType, "not-supported", "Content-Encoding")
	if n := w.active(); n != 0 {
		t.Errorf("%d jobs were started", n)
	}
}

// P-42: a kick-off may have 1 MiB, whether its length is announced or not; other requests have less.
func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	padded := func(size int) string { return emptyBody + strings.Repeat(" ", size-len(emptyBody)) }
	w.started(w.post(groupExport, padded(1<<20), w.as("alice")...))
	wantOutcome(t, w.post(groupExport, padded(1<<20+1), w.as("alice")...), http.StatusRequestEntityTooLarge, "too-long", "1048576")
	many := strings.Repeat(`{"name":"_type","valueCode":"Patient"},`, 100) + `{"name":"_type","valueCode":"Patient"}`
	wantOutcome(t, w.post(groupExport, withParameters(many), w.as("alice")...), http.StatusBadRequest, "too-costly", "100")
	id := w.kickoff(w.as("alice"), "")
	request, err := http.NewRequestWithContext(t.Context(), "DELETE", w.server.URL+statusPath(id), strings.NewReader(padded(100_000)))
	must(t, err)
	wantOutcome(t, w.answer(request), http.StatusRequestEntityTooLarge, "too-long", "65536")
}

// K-12, K-13, K-16 to K-18, P-09, P-16, P-25: what a strict kick-off refuses a lenient one may ignore, and then reports in one
// sentence each, without a value. What is left must limit the export as the client asked.
func TestLenientKickOffs(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const secret = "s3cr3t"
	refused := []string{"_since", "_until", "includeAssociatedData", "organizeOutputBy", "allowPartialManifests"}
	type want struct {
		types   []string
		ignored []string // words of each sentence
	}
	tests := map[string]want{
		"?_type=Patient":                                          {[]string{"Patient"}, nil},
		"?_foo=" + secret + "&_type=Patient":                      {[]string{"Patient"}, []string{"_foo is unknown"}},
		"?s3cr3t%20x=1&_type=Patient":                             {[]string{"Patient"}, []string{"unknown parameter"}},
		"?b=1&a=1&_type=Patient":                                  {[]string{"Patient"}, []string{"parameter a ", "parameter b "}},
		"?_type=Patient,Nonsense&_type=patient":                   {[]string{"Patient"}, []string{"Nonsense, patient (did"}},
		"?_type=Patient,Group":                                    {[]string{"Patient"}, []string{"_type names types"}},
		"?_type=Patient,Group,Nonsense,s3cr3t%20":                 {[]string{"Patient"}, []string{"_type has a name", "Nonsense", "Group"}},
		"?_type=Patient&_since=2020":                              {[]string{"Patient"}, []string{"_since"}},
		"?_type=Patient&_since=2057-01-01T00:00:00Z":              {[]string{"Patient"}, []string{"_since is in the future"}},
		"?_type=Patient&_since=" + secret + "&_since=" + secret:   {[]string{"Patient"}, []string{"_since"}},
		"?_type=Patient&_until=" + secret + "&_format=" + secret:  {[]string{"Patient"}, []string{"_until"}},
		"?_type=Patient&includeAssociatedData=a&organizeOutputBy": {[]string{"Patient"}, []string{"includeAssociatedData", "organizeOutputBy"}},
	}
	for query, want := range tests {
		got := w.ask("GET", groupExport+query, append(w.as("alice"), "Prefer", "respond-async, handling=lenient")...)
		request := w.job(w.started(got)).Request
		if !slices.Equal(request.Types, want.types) || len(request.Ignored) != len(want.ignored) {
			t.Errorf("%s: %q, ignored %q, want %q, %q", query, request.Types, request.Ignored, want.types, want.ignored)
			continue
		}
		for i, word := range want.ignored {
			if text := request.Ignored[i]; !strings.Contains(text, word) || strings.Contains(text, secret) || !strings.HasSuffix(text, ".") {
				t.Errorf("%s: ignored %q, want %q in it", query, text, word)
			}
		}
		if len(want.ignored) == 0 {
			continue
		}
		for _, prefer := range [][]string{nil, {"Prefer", "handling=strict"}, {"Prefer", "handling=strict, handling=lenient"}, {"Prefer", "lenient"}} {
			wantOutcome(t, w.ask("GET", groupExport+query, append(w.as("alice"), prefer...)...), http.StatusBadRequest, "")
		}
	}
	for _, name := range refused {
		got := w.ask("GET", groupExport+"?"+name+"=x", w.as("alice")...)
		wantOutcome(t, got, http.StatusBadRequest, "", name)
		got = w.ask("GET", groupExport+"?"+name+"=x", append(w.as("alice"), "Prefer", "handling=lenient")...)
		request := w.job(w.started(got)).Request
		if len(request.Ignored) != 1 || !strings.Contains(request.Ignored[0], name) {
			t.Errorf("%s: ignored %q", name, request.Ignored)
		}
		if request.Incremental() || !request.Until.IsZero() || request.Associated != "" || request.OrganizedBy != "" || request.Partial {
			t.Errorf("%s: %+v", name, request)
		}
	}
	for query, word := range map[string]string{
		"?_type=Nonsense": "Nonsense", "?_type=Group,Nonsense": "Nonsense", "?_type=Group": "Group", "?_type=": "empty name",
		"?_type=Patient,": "empty name", "?_outputFormat=text/html": "_outputFormat", "?_since=a&_since=b": "_since",
		"?_since=2026-01-02T00:00:00Z&_until=2026-01-01T00:00:00Z": "_until",
		"?patient=Patient/p1": "POST", "?_type=%zz": "percent-encoding",
	} {
		got := w.ask("GET", groupExport+query, append(w.as("alice"), "Prefer", "handling=lenient")...)
		wantOutcome(t, got, http.StatusBadRequest, "", word)
	}
	got := w.ask("GET", groupExport+"?_type=Observation", append(w.as("alice", "system/Patient.rs"), "Prefer", "handling=lenient")...)
	wantOutcome(t, got, http.StatusForbidden, "forbidden", "Observation")
}

// Names that lenient kick-offs report are of the forms that are safe to repeat, and the audit log has those of known
// parameters alone.
func TestTheAuditLogHasTheLevelAndTheNames(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	lenient := append(w.as("alice"), "Prefer", "handling=lenient")
	w.started(w.ask("GET", "/fhir/$export?_type=Patient&_secret=1&_since=x", lenient...))
	w.started(w.post("/fhir/Patient/$export",
		withParameters(`{"name":"patient","valueReference":{"reference":"Patient/p1"}}`), lenient...))
	w.started(w.ask("GET", groupExport, lenient...))
	text := string(w.text())
	for _, want := range []string{
		`"detail":[{"type":"types","valueString":"Patient"},{"type":"parameters","valueString":"_since,_type"}`, `"name":"System"`,
		`{"type":"parameters","valueString":"patient"}`, `"name":"Patient"`, `"name":"Group/g1"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s: %s", want, text)
		}
	}
	for _, secret := range []string{"_secret", "Patient/p1", `"p1"`} {
		if strings.Contains(text, secret) || strings.Contains(w.log.String(), secret) {
			t.Errorf("a log has %s", secret)
		}
	}
}
