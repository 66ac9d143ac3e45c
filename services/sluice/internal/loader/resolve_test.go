package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// folder writes files and finds them.
func folder(t *testing.T, files map[string]string) Found {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	found, err := Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// counts returns the summary of what was left out, as "Type reason count base-of-file place".
func counts(sum Summary) (list []string) {
	for _, left := range sum.LeftOut {
		list = append(list, fmt.Sprintf("%s %s %d %s", left.Type, left.Reason, left.Count, filepath.Base(left.First)))
	}
	return list
}

func ofType(typ, id, more string) string {
	return fmt.Sprintf(`{"resourceType":%q,"id":%q%s}`, typ, id, more)
}

func reference(name, target string) string { return fmt.Sprintf(`,%q:{"reference":%q}`, name, target) }

// TestReadResolvesReferences: the files come first, then the store; Groups are rewritten too.
func TestReadResolvesReferences(t *testing.T) {
	found := folder(t, map[string]string{
		"a.ndjson": strings.Join([]string{ // before what it names
			ofType("Observation", "urn", reference("subject", "urn:uuid:p1")),
			ofType("Observation", "absolute", reference("subject", "https://ehr.example.org/fhir/Patient/p1")),
			ofType("Observation", "foreign", reference("subject", "https://other.example.org/fhir/Patient/p1")),
			ofType("Observation", "none", reference("subject", "urn:uuid:none")),
			ofType("Observation", "missed", `,"performer":[{"reference":"urn:uuid:x"},{"reference":"Practitioner?identifier=9"},`+
				`{"reference":"https://h/Practitioner/1"},{"reference":"https://h/Task/1"}]`+reference("subject", "Patient/p1")),
			ofType("Observation", "literal", reference("subject", "/Patient/p1")),
			ofType("Encounter", "e", reference("subject", "Patient/p1")+
				reference("serviceProvider", "Organization?identifier=https://s|o-1")+
				`,"participant":[{"individual":{"reference":"Practitioner?identifier=npi|stored"}}]`),
			`{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"urn:uuid:p1"}}]}`,
		}, "\n"),
		"b.ndjson": patient("p1") + "\n" +
			ofType("Organization", "org", `,"identifier":[{"system":"https://s","value":"o-1"}]`),
	})
	bases, err := fhir.NewBases("https://ehr.example.org/fhir/")
	if err != nil {
		t.Fatal(err)
	}
	cfg := none
	cfg.Bases = bases
	var got received
	sink := got.sink()
	sink.Resolve = func(_ context.Context, table *references.Table) error {
		if unmatched := table.Unmatched(); !slices.Equal(unmatched, []string{"Practitioner"}) {
			t.Errorf("the store is asked for %v", unmatched)
		}
		table.Settle()
		table.Offer(fhir.Ref{Type: "Practitioner", ID: "held"}, []byte(`{"identifier":[{"system":"npi","value":"stored"}]}`))
		table.Offer(fhir.Ref{Type: "Organization", ID: "other"}, []byte(`{"identifier":[{"system":"https://s","value":"o-1"}]}`))
		return nil
	}
	sum, err := read(t.Context(), found, cfg, sink, 100)
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, found.Files, sum)
	all := strings.Join(slices.Sorted(maps.Values(got.bodies)), "\n") + strings.Join(got.groups, "\n")
	for _, want := range []string{
		ofType("Observation", "urn", reference("subject", "Patient/p1")),
		ofType("Observation", "absolute", reference("subject", "Patient/p1")),
		ofType("Observation", "foreign", reference("subject", "https://other.example.org/fhir/Patient/p1")),
		ofType("Observation", "none", reference("subject", "urn:uuid:none")),
		reference("serviceProvider", "Organization/org"), `"Practitioner/held"`,
		`{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"Patient/p1"}}]}`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not among\n%s", want, all)
		}
	}
	if len(got.bodies) != 10 || len(got.groups) != 1 {
		t.Errorf("%d resources and %d groups, want each of 10, and the Group again", len(got.bodies), len(got.groups))
	}
	want := []string{
		"Observation foreign_patient 1 a.ndjson line 3",
		"Observation unresolved_patient 1 a.ndjson line 4",
		"Practitioner foreign_reference 1 a.ndjson line 5",
		"Practitioner unresolved_reference 1 a.ndjson line 5",
	}
	want = slices.Insert(want, 0, " unresolved_reference 1 a.ndjson line 5")
	if left := counts(sum); !slices.Equal(left, want) {
		t.Errorf("left out %q, want %q", left, want)
	}
}

// TestReadChangedFile: what the passes read must be the same.
func TestReadChangedFile(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"longer": func(path string) error { return os.WriteFile(path, []byte(patient("a")+"\n"+patient("b")), 0o600) },
		"gone":   os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			found := folder(t, map[string]string{
				"a.ndjson": ofType("Observation", "o", reference("subject", "urn:uuid:a")), "b.ndjson": patient("a"),
			})
			var got received
			sink := got.sink()
			sink.Resolve = func(context.Context, *references.Table) error { return change(found.Files[1].Path) }
			_, err := Read(t.Context(), found, none, sink)
			if err == nil || !strings.Contains(err.Error(), "b.ndjson") || name == "longer" && !errors.Is(err, errChanged) {
				t.Errorf("%v, want an error that names the file", err)
			}
		})
	}
}

// TestReadPassesOnWhatItRefuses: the store withholds older versions, so nothing may be resolved by their identifiers.
func TestReadPassesOnWhatItRefuses(t *testing.T) {
	version := func(number, more string) string {
		return ofType("Organization", "o", fmt.Sprintf(`,"meta":{"versionId":%q},"identifier":[{"system":"s","value":"1"}]%s`, number, more))
	}
	found := folder(t, map[string]string{"a.ndjson": strings.Join([]string{
		version("1", ""), version("2", `,"Subject":{}`), version("3", `,"name":"`+strings.Repeat("x", 2000)+`"`),
		ofType("Encounter", "e", reference("subject", "Patient/p")+reference("serviceProvider", "Organization?identifier=s|1")),
	}, "\n")})
	var got received
	sum, err := Read(t.Context(), found, Config{Limits: source.Limits{MaxLine: 1000, MaxReferences: 10}}, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, found.Files, sum)
	if !slices.Equal(got.refused, []string{"Organization/o 2", "Organization/o 3"}) {
		t.Errorf("refused %q", got.refused)
	}
	want := []string{"Organization malformed 1 a.ndjson line 2", "Organization too_long 1 a.ndjson line 3",
		"Organization unresolved_reference 1 a.ndjson line 4"}
	if left := counts(sum); !slices.Equal(left, want) {
		t.Errorf("left out %q, want %q", left, want)
	}
}

// TestReadPassesByFilesThatGrow: a log beside the data is read once.
func TestReadPassesByFilesThatGrow(t *testing.T) {
	found := folder(t, map[string]string{
		"a.ndjson":   ofType("Observation", "o", reference("subject", "urn:uuid:a")) + "\n" + patient("a"),
		"log.ndjson": `{"exportId":"e1"}`,
	})
	var got received
	sink := got.sink()
	sink.Resolve = func(context.Context, *references.Table) error {
		return os.WriteFile(found.Files[1].Path, []byte(ofType("Observation", "p", reference("subject", "urn:uuid:a"))), 0o600)
	}
	if _, err := Read(t.Context(), found, none, sink); err != nil || len(got.bodies) != 2 {
		t.Errorf("%d resources (%v)", len(got.bodies), err)
	}
}

// TestReadOffersOnlyWhatItTakes: a reference that only a refused resource has is not resolved.
func TestReadOffersOnlyWhatItTakes(t *testing.T) {
	identified := `,"identifier":[{"system":"s","value":"o-1"}]`
	for name, more := range map[string]string{
		"many references": `,"partOf":[` + strings.Repeat(`{"reference":"Organization/x"},`, 20) + `{}]`,
		"long":            `,"name":"` + strings.Repeat("x", 2000) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			found := folder(t, map[string]string{"a.ndjson": ofType("Organization", "o", identified+more) + "\n" +
				ofType("Encounter", "search", reference("subject", "Patient/p")+reference("serviceProvider", "Organization?identifier=s|o-1")) + "\n" +
				ofType("Encounter", "urn", reference("subject", "Patient/p")+reference("serviceProvider", "urn:uuid:o"))})
			var got received
			sum, err := Read(t.Context(), found, Config{Limits: source.Limits{MaxLine: 1000, MaxReferences: 10}}, got.sink())
			if err != nil {
				t.Fatal(err)
			}
			if all := fmt.Sprint(got.bodies); len(got.bodies) != 2 || strings.Contains(all, "Organization/o") {
				t.Errorf("loaded %s", all)
			}
			if left := strings.Join(counts(sum), "; "); !strings.Contains(left, "Organization unresolved_reference 1") {
				t.Errorf("left out %s", left)
			}
		})
	}
}

// TestReadLeavesOut: each reason, with the first place. The directory takes a Group that is too long for a resource, and a
// Group may have any number of references.
func TestReadLeavesOut(t *testing.T) {
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf(`{"entity":{"reference":"Patient/%d"}}`, i))
	}
	long := strings.Repeat("x", 300)
	found := folder(t, map[string]string{
		"a.ndjson": strings.Join([]string{
			patient("p"),
			ofType("Observation", "o1", ""),
			ofType("Observation", "o2", reference("subject", "Patient/abc_1")),
			ofType("Observation", "o3", reference("subject", "Patient/abc_2")),
			ofType("Observation", "20391", `,"note":"`+long+`"`),
			ofType("Observation", "20391", `,"performer":[`+strings.Repeat(`{"reference":"Practitioner/x"},`, 5)+`{"reference":"#y"}]`),
			ofType("ProcedureRequest", "x", ""),
			`{"resourceType":"Observation"}`,
			`{"id":"20391"}`,
			ofType("Patient", "dated", `,"meta":{"lastUpdated":"yesterday"}`),
			ofType("Patient", "dates", `,"meta":{"lastUpdated":"2024-01-01T00:00:00Z"}`),
			ofType("Group", "g", `,"member":[`+strings.Join(many, ",")+`]`),
			ofType("Device", "stock", ""),
			ofType("Group", "h", `,"member":[`+strings.Join(many[:6], ",")+`]`),
			ofType("Group", "odd", `,"Subject":"x"`),
		}, "\n"),
		"delta.json": `{"resourceType":"Bundle","type":"transaction","entry":[
			{"request":{"method":"DELETE","url":"Observation/gone"}},
			{"request":{"method":"DELETE","url":"Group/gone"}},
			{"request":{"method":"DELETE","url":"Task/gone"}},
			{"request":{"method":"DELETE","url":"Parameters/gone"}},
			{"request":{"method":"DELETE","url":"Observation?status=x"}},
			{"request":{"method":"PATCH","url":"Observation/1"},"resource":{"resourceType":"Binary","id":"x"}}]}`,
	})
	var got received
	sum, err := Read(t.Context(), found, Config{Limits: source.Limits{MaxLine: 290, MaxReferences: 5}}, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, found.Files, sum)
	want := []string{
		" malformed 1 a.ndjson line 9",
		" unknown_type 1 a.ndjson line 7",
		" unsupported_entry 2 delta.json entry 5",
		"Device no_patient 1 a.ndjson line 13",
		"Group malformed 1 a.ndjson line 15",
		"Group too_long 1 a.ndjson line 12",
		"Observation invalid_subject 2 a.ndjson line 3",
		"Observation malformed 1 a.ndjson line 8",
		"Observation no_patient 1 a.ndjson line 2",
		"Observation too_long 1 a.ndjson line 5",
		"Observation too_many_references 1 a.ndjson line 6",
	}
	if left := counts(sum); !slices.Equal(left, want) {
		t.Errorf("left out\n%s\nwant\n%s", strings.Join(left, "\n"), strings.Join(want, "\n"))
	}
	gone := map[fhir.Ref]int64{
		{Type: "Observation", ID: "gone"}: place(1, 1), {Type: "Group", ID: "gone"}: place(1, 2), {Type: "Task", ID: "gone"}: place(1, 3),
	}
	if !maps.Equal(got.deleted, gone) || sum.Deletions != 3 || sum.Ignored["Parameters"] != 1 {
		t.Errorf("deleted %v, %d; ignored %v", got.deleted, sum.Deletions, sum.Ignored)
	}
	if sum.Undated != 1 || sum.Unreadable() != 7 || sum.Resources["Group"] != 1 || sum.Groups != 3 {
		t.Errorf("%d undated, %d unreadable, %v, %d groups", sum.Undated, sum.Unreadable(), sum.Resources, sum.Groups)
	}
	slices.Sort(got.refused)
	if want := []string{"Group/g 0", "Group/odd 0", "Observation/20391 0", "Observation/20391 0"}; !slices.Equal(got.refused, want) {
		t.Errorf("refused %q, want %q", got.refused, want)
	}
}

// TestReadDoesNotTrustTheTypeOfMalformedLines: it may be that of the first of two resources without a line break.
func TestReadDoesNotTrustTheTypeOfMalformedLines(t *testing.T) {
	found := folder(t, map[string]string{"a.ndjson": strings.Join([]string{
		ofType("Task", "1", "") + ofType("Observation", "1", ""), ofType("Condition", "1", "") + ofType("Observation", "2", ""),
		`{"resourceType":"Task","resourceType":"Observation","id":"3"}`, ofType("Observation", "4", `,"id":"5"`),
	}, "\n")})
	var got received
	sum, err := Read(t.Context(), found, none, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{" malformed 3 a.ndjson line 1", "Observation malformed 1 a.ndjson line 4"}
	if left := counts(sum); !slices.Equal(left, want) || len(sum.Ignored) > 0 {
		t.Errorf("left out %q, ignored %v; want %q", left, sum.Ignored, want)
	}
}

// TestReadPassesByFilesWithoutResources: they are told once each, and are no problem.
func TestReadPassesByFilesWithoutResources(t *testing.T) {
	found := folder(t, map[string]string{
		"Patient.ndjson": patient("p"),
		"log.ndjson":     strings.Repeat(`{"exportId":"e1","eventId":"kickoff"}`+"\n", 30),
		"error/1.OperationOutcome.ndjson": `{"resourceType":"OperationOutcome","issue":[]}` + "\n" +
			`{"resourceType":"OperationOutcome","id":"1","issue":[]}`,
		"package.json": "{\n  \"name\": \"x\"\n}\n",
		"entry.json":   `{"entry":"x"}`,
		"ids.json":     `[1,2]`,
		"urls.ndjson":  "\"https://h/1.ndjson\"\n\"https://h/2.ndjson\"",
	})
	var got received
	sum, err := Read(t.Context(), found, none, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, found.Files, sum)
	if len(sum.LeftOut) > 0 || len(got.said) != 6 || sum.Ignored["OperationOutcome"] != 2 {
		t.Errorf("left out %+v, ignored %v, said %q", sum.LeftOut, sum.Ignored, got.said)
	}
	for _, text := range got.said {
		if !strings.Contains(text, ": passed by, ") {
			t.Errorf("said %q", text)
		}
	}
}

// TestReadReportsFewPlaces: a file of junk is not a flood.
func TestReadReportsFewPlaces(t *testing.T) {
	found := folder(t, map[string]string{
		"junk.ndjson": strings.Repeat(`{"resourceType":"ProcedureRequest","id":"x1"}`+"\n", 20_000),
		"cut.ndjson":  patient("p") + strings.Repeat("\n{\"id\":1}", 3),
	})
	var got received
	sum, err := Read(t.Context(), found, none, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.said) != reported+2 {
		t.Errorf("said %d times, want %d", len(got.said), reported+2)
	}
	if !slices.ContainsFunc(got.said, func(text string) bool { return strings.HasSuffix(text, "junk.ndjson: and 19990 more") }) {
		t.Errorf("said %q", got.said)
	}
	if left := counts(sum); !slices.Equal(left, []string{" malformed 3 cut.ndjson line 2", " unknown_type 20000 junk.ndjson line 1"}) {
		t.Errorf("left out %q", left)
	}
}

// TestReadBundles: transaction Bundles, in a document and in a line among others, become resources.
func TestReadBundles(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	bundle := `{"resourceType":"Bundle","type":"transaction","entry":[{"fullUrl":"urn:uuid:` + id + `","resource":` +
		patient(id) + `,"request":{"method":"POST","url":"Patient"}},{"fullUrl":"urn:uuid:o","resource":` +
		ofType("Observation", "o", reference("subject", "urn:uuid:"+id)) + `,"request":{"method":"POST","url":"Observation"}}]}`
	for name, file := range map[string]string{
		"one.json":    strings.ReplaceAll(bundle, `,"`, ",\n\""),
		"many.ndjson": patient("x") + "\n" + bundle,
	} {
		t.Run(name, func(t *testing.T) {
			found := folder(t, map[string]string{name: file})
			var got received
			sum, err := Read(t.Context(), found, none, got.sink())
			if err != nil || len(sum.LeftOut) > 0 {
				t.Fatalf("%v, left out %+v", err, sum.LeftOut)
			}
			bodies := slices.Collect(maps.Values(got.bodies))
			if !slices.Contains(bodies, ofType("Observation", "o", reference("subject", "Patient/"+id))) || !slices.Contains(bodies, patient(id)) {
				t.Errorf("got %q", bodies)
			}
		})
	}
}

// BenchmarkRead reads lines with as many references as one may have.
func BenchmarkRead(b *testing.B) {
	var list []string
	for i := range 10_000 {
		list = append(list, fmt.Sprintf(`{"reference":"Practitioner/x%d"}`, i))
	}
	line := ofType("Observation", "o", reference("subject", "Patient/p")+`,"performer":[`+strings.Join(list[1:], ",")+`]`)
	path := filepath.Join(b.TempDir(), "in.ndjson")
	if err := os.WriteFile(path, []byte(strings.Repeat(line+"\n", 100)), 0o600); err != nil {
		b.Fatal(err)
	}
	found, err := Find([]string{path})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		sum, err := Read(b.Context(), found, Config{Limits: source.Limits{MaxLine: 32 << 20, MaxReferences: 10_000}}, Sink{
			Resources: func(context.Context, string, []postgres.Line) error { return nil },
			Progress:  func(int64) {}, Say: func(text string) { b.Error(text) },
		})
		if err != nil || len(sum.LeftOut) > 0 || sum.Resources["Observation"] != 100 {
			b.Fatalf("%+v, %v", sum, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1e6, "ns/reference")
}
