package httpapi_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// kickOffEntries has an entry of a body for each parameter. It is compared with the described ones.
func kickOffEntries(t *testing.T, w *fixture) map[string]string {
	t.Helper()
	entries := map[string]string{
		"_type": `"valueString":"Patient,Provenance"`, "_outputFormat": `"valueCode":"ndjson"`, "_since": `"valueInstant":"2026-01-01T00:00:00Z"`,
		"_until": `"valueInstant":"2026-02-01T00:00:00Z"`, "_elements": `"valueString":"id"`, "_typeFilter": `"valueString":"Patient?gender=male"`,
		"includeAssociatedData": `"valueCode":"LatestProvenanceResources"`, "organizeOutputBy": `"valueCode":"Patient"`,
		"allowPartialManifests": `"valueBoolean":true`, "_format": `"valueCode":"json"`, "_pretty": `"valueBoolean":true`,
		"patient": `"valueReference":{"reference":"Patient/p1"}`,
	}
	known := []string{"patient"}
	for _, ref := range describe(t, w).paths["/$export"]["POST"].Parameters {
		known = append(known, ref.Ref[strings.LastIndexByte(ref.Ref, '/')+1:])
	}
	known = slices.DeleteFunc(known, func(name string) bool { return name == "Prefer" })
	slices.Sort(known)
	if names := slices.Sorted(maps.Keys(entries)); !slices.Equal(names, known) {
		t.Fatalf("%q, want %q", names, known)
	}
	for name, value := range entries {
		entries[name] = `{"name":"` + name + `",` + value + `}`
	}
	return entries
}

// Issue 14, done 4: with every parameter at every level, another subject gets the 404 of an unknown job for status, pages,
// signature, files and cancel, and a narrower token of the owner one 403, with no header that says more.
func TestIsolationOfEveryParameter(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	entries, never := kickOffEntries(t, w), "/fhir/exports/"+string(export.NewJobID())
	questions := map[string][]string{ // below the job's URL, with headers
		"GET ": nil, "HEAD ": nil, "GET ?page=1": nil, "GET ?page=2": nil, "GET ?page=x": nil, "DELETE ": nil, "GET /files/FILE": nil,
		"HEAD /files/FILE": nil, "GET /files/FILE#": {"Accept-Encoding", "gzip", "If-None-Match", "*"},
		"GET /files/GONE": {"Range", "bytes=0-1"}, "GET /files/none": nil,
		"GET /attachments/Patient.Patient-00000.1.0.0": nil, "HEAD /attachments/Patient.Patient-00000.1.0.0": nil,
	}
	want := map[string]reply{}
	for question, headers := range questions {
		method, below, _ := strings.Cut(strings.TrimSuffix(question, "#"), " ")
		want[question] = w.ask(method, never+below, append(w.as("alice"), headers...)...)
		if want[question].code != http.StatusNotFound {
			t.Fatalf("%s of an unknown job: %d", question, want[question].code)
		}
	}
	for level, target := range map[string]string{"system": "/fhir/$export", "patient": patientExport, "group": groupExport} {
		for name, entry := range entries {
			if level == "system" && name == "patient" {
				continue // P-24
			}
			id := w.started(w.post(target, withParameters(entry), w.as("alice")...))
			files := w.run(id, patients(3), content{typ: "Bundle", lines: []string{"{}"}})
			path := strings.NewReplacer("FILE", files[0].Name, "GONE", files[1].Name)
			for question, headers := range questions {
				method, below, _ := strings.Cut(path.Replace(strings.TrimSuffix(question, "#")), " ")
				for caller, user := range map[string][]string{
					"bob": w.as("bob"), "another issuer": w.of(issuerTwo, "alice"), "no grant": w.as("dave"), "few types": w.as("carol"),
					"few patients": w.as("erin", "system/Condition.rs"),
				} {
					got := w.ask(method, statusPath(id)+below, append(user, headers...)...)
					if got.code != want[question].code || got.body != want[question].body || plainHeader(got.header) != plainHeader(want[question].header) {
						t.Errorf("%s, %s: %s by %s: %+v, want %+v", level, name, question, caller, got, want[question])
					}
				}
			}
			narrow := map[string]reply{}
			for _, below := range []string{"", "?page=1", "?page=2", "?page=x"} {
				narrow[below] = w.ask("GET", statusPath(id)+below, w.as("alice", "system/Condition.rs")...)
			}
			wantSame(t, narrow)
			wantOutcome(t, narrow[""], http.StatusForbidden, "forbidden", "Patient")
			wantHeader(t, narrow[""], header, "", "Expires", "", "X-Progress", "")
			wantOutcome(t, w.ask("GET", filePath(id, files[0]), w.as("alice", "system/Condition.rs")...), http.StatusForbidden, "forbidden")
			if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusOK || got.header.Get(header) == "" {
				t.Errorf("%s, %s: its owner gets %d", level, name, got.code)
			}
		}
	}
}

// With every parameter, in both methods, lenient or not, a kick-off outside the grant is the same refusal, whether the group
// or the patients exist and whatever time others were given. Nothing is looked up, and no job is left.
func TestIsolationOfEveryParameterOfAKickOff(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	entries := kickOffEntries(t, w)
	first := w.job(w.kickoff(w.as("alice"), ""))
	first.Snapshot = w.clock.Now().Add(-time.Hour)
	must(t, w.jobs.NoteTransactionTime(t.Context(), first, w.clock.Now().Truncate(time.Second)))
	entries["continued"] = `{"name":"_since","valueInstant":"` + w.clock.Now().Format(time.RFC3339) + `"}`
	entries["no patient"] = `{"name":"patient","valueReference":{"reference":"Patient/none"}}`
	entries["none"] = `{"name":"_format","valueCode":"json"},{"name":"_pretty","valueCode":"x"}`
	before := w.active()
	w.users.exists = func(string) error { t.Error("a group was looked up"); return nil }
	w.users.unknown = func() error { t.Error("patients were looked up"); return nil }
	for refusal, targets := range map[string]map[string][]string{
		"no such Group": {"/fhir/Group/g1/$export": {"carol", "dave", "erin"}, "/fhir/Group/g9/$export": {"carol", "dave", "erin"}},
		"patient level": {patientExport: {"carol", "dave"}},
		"system level":  {"/fhir/$export": {"carol", "dave", "erin"}},
	} {
		answers := map[string]reply{}
		for target, callers := range targets {
			for name, entry := range entries {
				if target == "/fhir/$export" && strings.Contains(entry, `"patient"`) {
					continue // P-24: refused for everybody
				}
				for _, caller := range callers {
					about := target + " " + name + " by " + caller
					answers[about] = w.post(target, withParameters(entry), w.as(caller)...)
					answers["lenient "+about] = w.post(target, withParameters(entry, `{"name":"_x","valueCode":"x"}`),
						append(w.as(caller), "Prefer", "handling=lenient")...)
				}
			}
		}
		wantSame(t, answers)
		for _, got := range answers {
			wantOutcome(t, got, map[bool]int{true: 404, false: 403}[refusal == "no such Group"], "", refusal)
			break
		}
	}

	// Patients outside the grant of the level are like those that do not exist, whatever else is asked for.
	w.users.unknown = nil
	for name, entry := range entries {
		if strings.Contains(entry, `"patient"`) {
			continue
		}
		answers := map[string]reply{}
		for _, patient := range []string{"p2", "p3", "none"} { // erin may export p1 and p4
			body := withParameters(entry, `{"name":"patient","valueReference":{"reference":"Patient/`+patient+`"}}`)
			answers[patient] = w.post(patientExport, body, w.as("erin")...)
			answers["lenient "+patient] = w.post(patientExport, body, append(w.as("erin"), "Prefer", "handling=lenient")...)
		}
		wantSame(t, answers)
		wantOutcome(t, answers["none"], http.StatusBadRequest, "not-found", "number: 1.")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	if n := w.active(); n != before {
		t.Errorf("%d jobs were started", n-before)
	}
}
