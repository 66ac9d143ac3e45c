// Package sourcetest is the suite that every driver of source.Source passes. It loads small hand-written populations and
// tests the contract.
package sourcetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Load returns a source with the lines of the files, NDJSON by name ("a/b.ndjson").
type Load func(t *testing.T, files map[string][]byte) source.Source

// Run runs the whole suite.
func Run(t *testing.T, load Load) {
	t.Run("attribution", func(t *testing.T) { attribution(t, load) })
	t.Run("provenance", func(t *testing.T) { provenance(t, load) })
	t.Run("slices", func(t *testing.T) { everySliceIsComplete(t, load) })
	t.Run("never exported with patients", func(t *testing.T) { neverExported(t, load) })
	t.Run("by id", func(t *testing.T) { byID(t, load) })
	t.Run("duplicates", func(t *testing.T) { duplicates(t, load) })
	t.Run("versions", func(t *testing.T) { versions(t, load) })
	t.Run("refused versions", func(t *testing.T) { refusedVersions(t, load) })
	t.Run("deleted, then there again", func(t *testing.T) { recreated(t, load) })
	t.Run("broken lines", func(t *testing.T) { brokenLines(t, load) })
	t.Run("somebody", func(t *testing.T) { somebody(t, load) })
	t.Run("left out", func(t *testing.T) { leftOut(t, load) })
	t.Run("chains of Provenance", func(t *testing.T) { provenanceChains(t, load) })
	t.Run("bodies", func(t *testing.T) { bodies(t, load) })
	t.Run("stopping", func(t *testing.T) { stopping(t, load) })
	t.Run("sizes", func(t *testing.T) { sizes(t, load) })
	t.Run("every type", func(t *testing.T) { everyType(t, load) })
	t.Run("every type has one version", func(t *testing.T) { everyTypeHasOneVersion(t, load) })
	t.Run("everything", func(t *testing.T) { everything(t, load) })
	t.Run("patients", func(t *testing.T) { patients(t, load) })
	t.Run("narrowing", func(t *testing.T) { narrowing(t, load) })
}

// lines returns one file with the lines.
func lines(lines ...string) map[string][]byte {
	return map[string][]byte{"all.ndjson": []byte(strings.Join(lines, "\n") + "\n")}
}

// resource returns one line with the type, the id and further members.
func resource(typ, id string, members ...string) string {
	head := fmt.Sprintf(`{"resourceType":%q,"id":%q`, typ, id)
	return strings.Join(append([]string{head}, members...), ",") + "}"
}

func ref(element, target string) string { return fmt.Sprintf(`%q:{"reference":%q}`, element, target) }

func targets(refs ...string) string {
	var list []string
	for _, r := range refs {
		list = append(list, fmt.Sprintf(`{"reference":%q}`, r))
	}
	return `"target":[` + strings.Join(list, ",") + `]`
}

// collector gathers what a source yields: Type/id of each resource with its subjects.
type collector struct {
	t      *testing.T
	got    map[string][]string
	bodies map[string]string
}

func collect(t *testing.T) *collector {
	return &collector{t: t, got: map[string][]string{}, bodies: map[string]string{}}
}

// take checks a resource: it is yielded once, and its body has its type and id.
func (c *collector) take(r source.Resource) error {
	c.t.Helper()
	name := r.Type + "/" + r.ID
	if _, twice := c.got[name]; twice {
		c.t.Errorf("%s was yielded twice", name)
	}
	if bytes.ContainsAny(r.Body, "\r\n") {
		c.t.Errorf("%s is not on one line", name)
	}
	var body struct{ ResourceType, ID string }
	if err := json.Unmarshal(r.Body, &body); err != nil || body.ResourceType != r.Type || body.ID != r.ID {
		c.t.Errorf("%s has the body of %s/%s (%v)", name, body.ResourceType, body.ID, err)
	}
	if !slices.IsSorted(r.Subjects) || len(slices.Compact(slices.Clone(r.Subjects))) != len(r.Subjects) {
		c.t.Errorf("%s has subjects %v, want them sorted and each once", name, r.Subjects)
	}
	c.got[name] = slices.Clone(r.Subjects)
	c.bodies[name] = string(r.Body)
	return nil
}

// ofPatients reads one type of some patients.
func ofPatients(t *testing.T, src source.Source, typ string, patients ...string) *collector {
	t.Helper()
	c := collect(t)
	q := source.Query{Type: typ, Patients: patients, AsOf: time.Now()}
	if err := src.ForPatients(t.Context(), q, c.take); err != nil {
		t.Fatalf("%s of %v: %v", typ, patients, err)
	}
	for name, subjects := range c.got {
		asked := func(subject string) bool { return slices.Contains(patients, subject) }
		if !slices.ContainsFunc(subjects, asked) {
			t.Errorf("%s was yielded for %v but is about %v", name, patients, subjects)
		}
	}
	return c
}

// expect reads one type of some patients and compares names and subjects.
func expect(t *testing.T, src source.Source, typ string, patients []string, want map[string][]string) {
	t.Helper()
	if got := ofPatients(t, src, typ, patients...).got; !reflect.DeepEqual(got, want) {
		t.Errorf("%s of %v: got %v, want %v", typ, patients, got, want)
	}
}

type names = map[string][]string

// attribution: a resource is about the patients of its subject-like links only (spec 10; pitfall 2).
func attribution(t *testing.T, load Load) {
	src := load(t, lines(
		resource("Patient", "a", `"link":[{"other":{"reference":"Patient/b"},"type":"seealso"}]`),
		resource("Patient", "b"),
		resource("Patient", "c"),
		resource("Observation", "plain", ref("subject", "Patient/a")),
		resource("Observation", "versioned", ref("subject", "Patient/a/_history/3")),
		resource("Observation", "fragment", ref("subject", "Patient/a#name")),
		resource("Observation", "slash", ref("subject", "/Patient/a")),
		resource("Observation", "absolute", ref("subject", "https://ehr.example.org/fhir/Patient/a")),
		resource("Observation", "escaped", `"subject":{"reference":"Patient\/a"}`),
		`{"subject":{"reference":"Patient/a"},"id":"late","resourceType":"Observation"}`,
		resource("Observation", "urn", ref("subject", "urn:uuid:x")),
		resource("Observation", "contained", ref("subject", "#a"), `"contained":[{"resourceType":"Patient","id":"a"}]`),
		resource("Observation", "within", ref("subject", "Patient/b"),
			`"contained":[{"resourceType":"Observation","id":"x","subject":{"reference":"Patient/a"}}]`),
		resource("Observation", "conditional", ref("subject", "Patient?identifier=x")),
		resource("Observation", "logical", `"subject":{"type":"Patient","identifier":{"value":"a"}}`),
		resource("Observation", "group", ref("subject", "Group/a")),
		resource("Observation", "none"),
		resource("Observation", "performed", ref("subject", "Patient/b"), `"performer":[{"reference":"Patient/a"}]`),
		resource("AllergyIntolerance", "recorded", ref("patient", "Patient/b"), ref("recorder", "Patient/a")),
		resource("Composition", "authored", ref("subject", "Patient/b"), `"author":[{"reference":"Patient/a"}]`),
		resource("Communication", "sent", ref("sender", "Patient/a")),
		resource("Coverage", "covered", ref("beneficiary", "Patient/b"), ref("subscriber", "Patient/a")),
		resource("Appointment", "two", `"participant":[{"actor":{"reference":"Patient/c"}},`+
			`{"actor":{"reference":"Practitioner/p"}},{"actor":{"reference":"Patient/a"}},`+
			`{"actor":{"reference":"Patient/c"}}]`),
		resource("Device", "implant", ref("patient", "Patient/a")),
		resource("Device", "stock"),
	))
	// pitfall 1: a query without patients returns nothing.
	for _, typ := range []string{"Patient", "Observation", "Appointment", "Device", "Provenance"} {
		expect(t, src, typ, nil, names{})
		expect(t, src, typ, []string{}, names{})
		expect(t, src, typ, []string{"unknown"}, names{})
		expect(t, src, typ, []string{""}, names{})
	}
	a := []string{"a"}
	expect(t, src, "Patient", a, names{"Patient/a": a})
	expect(t, src, "Observation", a, names{"Observation/plain": a, "Observation/versioned": a, "Observation/fragment": a,
		"Observation/slash": a, "Observation/escaped": a, "Observation/late": a, "Observation/within": {"a", "b"}})
	expect(t, src, "Observation", []string{"b"}, names{"Observation/within": {"a", "b"}, "Observation/performed": {"b"}})
	for _, typ := range []string{"AllergyIntolerance", "Composition", "Communication", "Coverage"} {
		expect(t, src, typ, a, names{})
	}
	expect(t, src, "AllergyIntolerance", []string{"b"}, names{"AllergyIntolerance/recorded": {"b"}})
	expect(t, src, "Appointment", a, names{"Appointment/two": {"a", "c"}})
	expect(t, src, "Appointment", []string{"b"}, names{})
	expect(t, src, "Appointment", []string{"c"}, names{"Appointment/two": {"a", "c"}})
	expect(t, src, "Appointment", []string{"a", "b", "c"}, names{"Appointment/two": {"a", "c"}})
	expect(t, src, "Device", []string{"a", "b", "c"}, names{"Device/implant": a})
	expect(t, src, "Goal", a, names{}) // a type that the store does not hold
}

// provenance: a Provenance is about the patients of its targets.
func provenance(t *testing.T, load Load) {
	src := load(t, lines(
		resource("Provenance", "observation", targets("Observation/o")), // before its targets
		resource("Patient", "a"),
		resource("Patient", "b"),
		resource("Observation", "o", ref("subject", "Patient/a")),
		resource("Observation", "p", ref("subject", "Patient/b")),
		resource("Observation", "adrift", ref("subject", "urn:uuid:1")),
		resource("Appointment", "both", `"participant":[{"actor":{"reference":"Patient/b"}},`+
			`{"actor":{"reference":"Patient/a"}}]`),
		resource("Organization", "org"),
		resource("Practitioner", "pr"),
		resource("Provenance", "patient", targets("Patient/a", "Patient/a/_history/1"), ref("agent", "Patient/b")),
		resource("Provenance", "two", targets("Observation/p", "Patient/a")),
		resource("Provenance", "shared", targets("Appointment/both")),
		resource("Provenance", "again", targets("Provenance/further")),
		resource("Provenance", "further", targets("Provenance/observation")),
		resource("Provenance", "ring", targets("Provenance/ring")),
		resource("Provenance", "mixed", targets("Organization/org", "Observation/o")),
		resource("Provenance", "unknown", targets("Observation/gone")),
		resource("Provenance", "no-such-type", targets("Goal/g", "Organization/org")),
		resource("Provenance", "partly-unknown", targets("Observation/gone", "Organization/org")),
		resource("Provenance", "adrift", targets("Observation/adrift")),
		resource("Provenance", "urn", targets("urn:uuid:x", "Organization/org")),
		resource("Provenance", "empty"),
		resource("Provenance", "org", targets("Organization/org")),
		resource("Provenance", "org-and-practitioner", targets("Organization/org/_history/2", "Practitioner/pr")),
		resource("Provenance", "location", targets("Location/l")),
		resource("Provenance", "org-and-location", targets("Organization/org", "Location/l")),
		resource("Provenance", "a-and-gone", targets("Observation/o", "Observation/gone")),
		resource("Provenance", "a-and-location", targets("Patient/a", "Location/l")),
		resource("Provenance", "a-and-urn", targets("Patient/a", "urn:uuid:x")),
		resource("Provenance", "a-and-adrift", targets("Observation/o", "Observation/adrift")),
		resource("Provenance", "a-and-logical", `"target":[{"reference":"Patient/a"},{"identifier":{"value":"x"}}]`),
		resource("Group", "g"),
		resource("Provenance", "a-and-never", targets("Patient/a", "Group/g")),
		resource("Provenance", "of-a-and-gone", targets("Provenance/a-and-gone")),
	))
	unsure := []string{"a", source.Somebody}
	a, both := []string{"a"}, []string{"a", "b"}
	expect(t, src, "Provenance", a, names{"Provenance/observation": a, "Provenance/patient": a,
		"Provenance/two": both, "Provenance/shared": both, "Provenance/mixed": a, "Provenance/again": a,
		"Provenance/further": a, "Provenance/a-and-gone": unsure, "Provenance/a-and-location": unsure,
		"Provenance/a-and-urn": unsure, "Provenance/a-and-adrift": unsure, "Provenance/a-and-logical": unsure,
		"Provenance/a-and-never": unsure, "Provenance/of-a-and-gone": unsure})
	expect(t, src, "Provenance", []string{"b"}, names{"Provenance/two": both, "Provenance/shared": both})
	expect(t, src, "Provenance", both, names{"Provenance/observation": a, "Provenance/patient": a,
		"Provenance/two": both, "Provenance/shared": both, "Provenance/mixed": a, "Provenance/again": a,
		"Provenance/further": a, "Provenance/a-and-gone": unsure, "Provenance/a-and-location": unsure,
		"Provenance/a-and-urn": unsure, "Provenance/a-and-adrift": unsure, "Provenance/a-and-logical": unsure,
		"Provenance/a-and-never": unsure, "Provenance/of-a-and-gone": unsure})

	about := func(want names, refs ...source.Ref) {
		t.Helper()
		c := collect(t)
		if err := src.About(t.Context(), source.AboutQuery{Refs: refs, AsOf: time.Now()}, c.take); err != nil {
			t.Fatalf("about %v: %v", refs, err)
		}
		if !reflect.DeepEqual(c.got, want) {
			t.Errorf("about %v: got %v, want %v", refs, c.got, want)
		}
	}
	org, practitioner := source.Ref{Type: "Organization", ID: "org"}, source.Ref{Type: "Practitioner", ID: "pr"}
	about(names{})
	about(names{"Provenance/org": nil, "Provenance/org-and-practitioner": nil}, org)
	about(names{"Provenance/org-and-practitioner": nil}, practitioner)
	about(names{"Provenance/org": nil, "Provenance/org-and-practitioner": nil}, practitioner, org, org)
	about(names{}, source.Ref{Type: "Organization", ID: "other"}, source.Ref{Type: "Practitioner", ID: "org"})
	about(names{}, source.Ref{Type: "Patient", ID: "a"}, source.Ref{Type: "Observation", ID: "o"},
		source.Ref{Type: "Observation", ID: "gone"}, source.Ref{Type: "Observation", ID: "adrift"})
}

// everySliceIsComplete reads many slices of a population: each slice has every resource about its patients once, with
// all of its subjects, inside or outside the slice. Pitfall 24 (the cost follows the cohort) is measured by the
// benchmarks of the drivers.
func everySliceIsComplete(t *testing.T, load Load) {
	const people = 12
	var text []string
	var ids []string
	for i := range people {
		id := fmt.Sprintf("p%02d", (i*7)%people)
		ids = append(ids, id)
		text = append(text, resource("Patient", id))
	}
	slices.Sort(ids)
	about := names{}
	for i := range people {
		for j := range people {
			id := fmt.Sprintf("x-%d-%d", i, j)
			text = append(text, resource("Appointment", id, fmt.Sprintf(
				`"participant":[{"actor":{"reference":"Patient/%s"}},{"actor":{"reference":"Patient/%s"}}]`,
				ids[i], ids[j])))
			about["Appointment/"+id] = slices.Compact([]string{ids[min(i, j)], ids[max(i, j)]})
		}
	}
	src := load(t, lines(text...))
	for size := 1; size <= people; size++ {
		for slice := range slices.Chunk(ids, size) {
			want := names{}
			for name, subjects := range about {
				if slices.ContainsFunc(subjects, func(id string) bool { return slices.Contains(slice, id) }) {
					want[name] = subjects
				}
			}
			expect(t, src, "Appointment", slice, want)
		}
	}
}

// neverExported: types that name several patients by nature, and types outside the compartment (spec 10; pitfall 2).
func neverExported(t *testing.T, load Load) {
	refused := []string{
		resource("Group", "x", `"member":[{"entity":{"reference":"Patient/a"}}]`),
		resource("AuditEvent", "x", `"agent":[{"who":{"reference":"Patient/a"},"requestor":true}]`),
		resource("Schedule", "x", `"actor":[{"reference":"Patient/a"}]`),
		resource("Person", "x", `"link":[{"target":{"reference":"Patient/a"}}]`),
		resource("Task", "x", ref("for", "Patient/a")),
		resource("Organization", "x", ref("subject", "Patient/a")),
	}
	src := load(t, lines(append(refused, resource("Patient", "a"))...))
	for _, typ := range []string{"Group", "AuditEvent", "Schedule", "Person", "Task", "Organization", "Nonsense", ""} {
		q := source.Query{Type: typ, Patients: []string{"a"}, AsOf: time.Now()}
		err := src.ForPatients(t.Context(), q, func(r source.Resource) error {
			t.Errorf("%s/%s was yielded", r.Type, r.ID)
			return nil
		})
		if err == nil {
			t.Errorf("reading %q by patient: no error", typ)
		}
	}
	for _, typ := range fhir.ExportableTypes() {
		if !fhir.InCompartment(typ) || typ == "Patient" {
			continue
		}
		expect(t, src, typ, []string{"a"}, names{})
	}
}

func byID(t *testing.T, load Load) {
	src := load(t, lines(
		resource("Practitioner", "a"), resource("Practitioner", "b"), resource("Practitioner", "c"),
		resource("Organization", "a"), resource("Location", "a"), resource("PractitionerRole", "a"),
		resource("Medication", "a"), resource("Patient", "a"), resource("Binary", "b"), resource("Binary", "a"),
		resource("Observation", "a", ref("subject", "Patient/a")),
	))
	read := func(typ string, ids ...string) (*collector, error) {
		c := collect(t)
		return c, src.ByID(t.Context(), source.ByIDQuery{Type: typ, IDs: ids, AsOf: time.Now()}, c.take)
	}
	for _, test := range []struct {
		typ  string
		ids  []string
		want names
	}{
		{"Practitioner", nil, names{}},
		{"Practitioner", []string{"a", "c"}, names{"Practitioner/a": nil, "Practitioner/c": nil}},
		{"Practitioner", []string{"", "b", "unknown"}, names{"Practitioner/b": nil}},
		{"Practitioner", []string{"unknown"}, names{}},
		{"Organization", []string{"a", "b"}, names{"Organization/a": nil}},
		{"Location", []string{"a"}, names{"Location/a": nil}},
		{"PractitionerRole", []string{"a"}, names{"PractitionerRole/a": nil}},
		{"Medication", []string{"a"}, names{"Medication/a": nil}},
		{"Binary", []string{"a", "c"}, names{"Binary/a": nil}},
	} {
		c, err := read(test.typ, test.ids...)
		if err != nil || !reflect.DeepEqual(c.got, test.want) {
			t.Errorf("%s %v: got %v (%v), want %v", test.typ, test.ids, c.got, err, test.want)
		}
	}
	for _, typ := range []string{"Patient", "Observation", "Provenance", "Group", "Nonsense", ""} {
		if c, err := read(typ, "a"); err == nil || len(c.got) > 0 {
			t.Errorf("reading %q by id: %v, error %v; want nothing and an error", typ, c.got, err)
		}
	}
}

// duplicates: the newest version of a resource is served, on a tie the later one (L-14).
func duplicates(t *testing.T, load Load) {
	at := func(day int) string { return fmt.Sprintf(`"meta":{"lastUpdated":"2024-01-%02dT00:00:00Z"}`, day) }
	src := load(t, lines(
		resource("Patient", "a"), resource("Patient", "b"),
		resource("Observation", "newest-first", at(9), ref("subject", "Patient/a"), `"status":"kept"`),
		resource("Observation", "newest-first", at(8), ref("subject", "Patient/b")),
		resource("Observation", "newest-last", at(8), ref("subject", "Patient/b")),
		resource("Observation", "newest-last", at(9), ref("subject", "Patient/a"), `"status":"kept"`),
		resource("Observation", "tie", at(9), ref("subject", "Patient/b")),
		resource("Observation", "tie", at(9), ref("subject", "Patient/a"), `"status":"kept"`),
		resource("Observation", "dated", at(1), ref("subject", "Patient/a"), `"status":"kept"`),
		resource("Observation", "dated", ref("subject", "Patient/b")),
		resource("Observation", "zones", `"meta":{"lastUpdated":"2024-01-01T01:00:00+02:00"}`, ref("subject", "Patient/b")),
		resource("Observation", "zones", `"meta":{"lastUpdated":"2024-01-01T00:00:00Z"}`,
			ref("subject", "Patient/a"), `"status":"kept"`),
		resource("Condition", "tie", ref("subject", "Patient/b")), // another type, another resource
		resource("Practitioner", "p", at(9), `"status":"kept"`),
		resource("Practitioner", "p", at(8)),
	))
	c := ofPatients(t, src, "Observation", "a", "b")
	for _, id := range []string{"newest-first", "newest-last", "tie", "dated", "zones"} {
		name := "Observation/" + id
		if !slices.Equal(c.got[name], []string{"a"}) || !strings.Contains(c.bodies[name], `"kept"`) {
			t.Errorf("%s: the wrong version: %s", name, c.bodies[name])
		}
	}
	if len(c.got) != 5 {
		t.Errorf("got %d observations, want 5", len(c.got))
	}
	expect(t, src, "Condition", []string{"b"}, names{"Condition/tie": {"b"}})
	p := collect(t)
	if err := src.ByID(t.Context(), source.ByIDQuery{Type: "Practitioner", IDs: []string{"p"}}, p.take); err != nil ||
		!strings.Contains(p.bodies["Practitioner/p"], `"kept"`) {
		t.Errorf("Practitioner/p: %s (%v)", p.bodies["Practitioner/p"], err)
	}
}

// refusedVersions: no older version is served instead of one that is malformed, if its version can be told (spec 11).
func refusedVersions(t *testing.T, load Load) {
	version := func(id, number, patient string, more ...string) string {
		meta := fmt.Sprintf(`"meta":{"versionId":%q}`, number)
		return resource("Observation", id, append([]string{meta, ref("subject", "Patient/"+patient)}, more...)...)
	}
	twice := ref("subject", "Patient/b")
	src := load(t, lines(
		resource("Patient", "a"),
		version("newest-last", "1", "a"), version("newest-last", "2", "b", twice),
		version("newest-first", "2", "b", twice), version("newest-first", "1", "a"),
		version("cut", "1", "a"), strings.TrimSuffix(version("cut", "2", "b"), "}"),
		version("older", "1", "b", twice), version("older", "2", "a"),
		version("repaired", "1", "a"), version("repaired", "2", "b", twice), version("repaired", "3", "a"),
		version("same", "2", "a"), version("same", "2", "b", twice),
		version("same-first", "2", "b", twice), version("same-first", "2", "a"),
		version("unknown", "1", "a"), `{"resourceType":"Observation","id":"unknown","subject":{`,
		resource("Observation", "undated", ref("subject", "Patient/a")),
		resource("Observation", "undated", ref("subject", "Patient/b"), twice),
		resource("Practitioner", "p", `"meta":{"versionId":"1"}`),
		resource("Practitioner", "p", `"meta":{"versionId":"2"}`, `"Subject":{}`),
	))
	a := []string{"a"}
	expect(t, src, "Observation", []string{"a", "b"},
		names{"Observation/older": a, "Observation/repaired": a, "Observation/unknown": a, "Observation/same": a,
			"Observation/same-first": a})
	p := collect(t)
	must(t, src.ByID(t.Context(), source.ByIDQuery{Type: "Practitioner", IDs: []string{"p"}}, p.take))
	if len(p.got) > 0 {
		t.Errorf("got %v", p.got)
	}
}

// recreated: a deletion ends all versions before it; a later line counts, whatever its version is.
func recreated(t *testing.T, load Load) {
	version := func(id, number, patient string, more ...string) string {
		meta := fmt.Sprintf(`"meta":{"versionId":%q}`, number)
		return resource("Observation", id, append([]string{meta, ref("subject", "Patient/"+patient)}, more...)...)
	}
	gone := func(id string) string {
		return `{"resourceType":"Bundle","type":"transaction","entry":[` +
			`{"request":{"method":"DELETE","url":"Observation/` + id + `"}}]}`
	}
	twice := ref("subject", "Patient/b")
	src := load(t, lines(
		resource("Patient", "a"), resource("Patient", "b"),
		version("deleted", "5", "a"), gone("deleted"),
		version("lower", "5", "a"), gone("lower"), version("lower", "1", "b"),
		version("again", "5", "a"), gone("again"), version("again", "3", "a"), gone("again"), version("again", "1", "b"),
		version("refused", "5", "a"), gone("refused"), version("refused", "1", "b", twice),
		version("repaired", "5", "a", ref("subject", "Patient/a")), gone("repaired"), version("repaired", "1", "b"),
		gone("new"), version("new", "1", "b"),
	))
	b := []string{"b"}
	expect(t, src, "Observation", []string{"a", "b"},
		names{"Observation/lower": b, "Observation/again": b, "Observation/repaired": b, "Observation/new": b})
}

// brokenLines: malformed lines do not affect other lines, and no problem contains their content.
func brokenLines(t *testing.T, load Load) {
	const secret = "SECRET"
	src := load(t, lines(
		resource("Patient", "a"),
		`{"resourceType":"Observation","id":"`+secret+`1","subject":{"reference":"Patient/a"}`,
		`not JSON `+secret,
		``,
		"   \t",
		`{"resourceType":"Observation","id":"`+secret+` bad id","subject":{"reference":"Patient/a"}}`,
		`{"resourceType":"Observation","subject":{"reference":"Patient/a"},"note":"`+secret+`"}`,
		`{"resourceType":"`+secret+`","id":"x"}`,
		`{"id":"`+secret+`"}`,
		`["`+secret+`"]`,
		`{"resourceType":"Observation","id":"`+secret+`2","subject":{"reference":"Patient/a"},`+
			`"subject":{"reference":"Patient/b"}}`,
		resource("Observation", secret+"3", ref("subject", "Patient/a"), "\"x\":\"\xff\""),
		resource("Observation", "good", ref("subject", "Patient/a")),
	))
	expect(t, src, "Observation", []string{"a", "b"}, names{"Observation/good": {"a"}})
}

// versions: a number in meta.versionId counts before meta.lastUpdated where both versions have one (spec 11).
func versions(t *testing.T, load Load) {
	version := func(id, number, day, patient string) string {
		meta := fmt.Sprintf(`"meta":{"versionId":%q,"lastUpdated":"2024-01-%sT00:00:00Z"}`, number, day)
		return resource("Observation", id, meta, ref("subject", "Patient/"+patient))
	}
	src := load(t, lines(
		version("higher-first", "10", "01", "a"), version("higher-first", "9", "02", "b"),
		version("higher-last", "9", "02", "b"), version("higher-last", "10", "01", "a"),
		version("equal", "1", "02", "a"), version("equal", "1", "01", "b"),
		version("not-a-number", "x", "02", "a"), version("not-a-number", "10", "01", "b"),
	))
	a := []string{"a"}
	expect(t, src, "Observation", []string{"a", "b"}, names{"Observation/higher-first": a, "Observation/higher-last": a,
		"Observation/equal": a, "Observation/not-a-number": a})
}

// somebody: a line about a patient and perhaps about somebody else says so (spec 10).
func somebody(t *testing.T, load Load) {
	actors := func(references ...string) string {
		return `"participant":[{"actor":` + strings.Join(references, `},{"actor":`) + `}]`
	}
	member := `{"reference":"Patient/a"}`
	src := load(t, lines(
		resource("Patient", "a"),
		resource("Appointment", "alone", actors(member, `{"reference":"Practitioner/p"}`, `{"display":"Dr. X"}`)),
		resource("Appointment", "urn", actors(member, `{"reference":"urn:uuid:x"}`)),
		resource("Appointment", "logical", actors(`{"identifier":{"value":"MRN"},"display":"Person Two"}`, member)),
		resource("Appointment", "related", actors(member, `{"reference":"RelatedPerson/r"}`)),
		resource("Appointment", "invalid", actors(member, `{"reference":"Patient/a_b"}`)),
		resource("Appointment", "foreign", actors(member, `{"reference":"https://other.example/Patient/a"}`)),
		resource("Appointment", "both", actors(member, `{"reference":"https://other.example/Patient/a"}`, `{"reference":"#x"}`)),
		resource("Appointment", "contained", actors(member), `"contained":[{"resourceType":"Patient","id":"x"}]`),
		resource("Appointment", "nobody", actors(`{"reference":"urn:uuid:x"}`)),
	))
	a, unsure := []string{"a"}, []string{"a", source.Somebody}
	expect(t, src, "Appointment", a, names{
		"Appointment/alone": a, "Appointment/urn": unsure, "Appointment/logical": unsure, "Appointment/related": unsure,
		"Appointment/invalid": unsure, "Appointment/foreign": {"a", source.Foreigner}, "Appointment/contained": unsure,
		"Appointment/both": {"a", source.Somebody, source.Foreigner},
	})
	for _, sentinel := range []string{source.Somebody, source.Foreigner} {
		expect(t, src, "Appointment", []string{sentinel}, names{})
	}
}

// leftOut: what no export of patients contains is counted by type and reason (spec 11).
func leftOut(t *testing.T, load Load) {
	subject := func(reference string) string { return `"subject":` + reference }
	src := load(t, lines(
		resource("Patient", "a"),
		resource("Observation", "served", ref("subject", "Patient/a")),
		resource("Observation", "no-subject"),
		resource("Observation", "of-a-group", ref("subject", "Group/g")),
		resource("Observation", "urn", ref("subject", "urn:uuid:x")),
		resource("Observation", "logical", subject(`{"identifier":{"value":"x"}}`)),
		resource("Observation", "search", ref("subject", "Patient?identifier=x")),
		resource("Observation", "contained", ref("subject", "#p"), `"contained":[{"resourceType":"Patient","id":"p"}]`),
		resource("Observation", "foreign", ref("subject", "https://elsewhere.example/Patient/a")),
		resource("Observation", "invalid", ref("subject", "Patient/a_b")),
		resource("Condition", "invalid", subject(`"Patient/a"`)),
		resource("Condition", "replaced", ref("subject", "urn:uuid:x")),
		resource("Condition", "replaced", ref("subject", "Patient/a")),
		resource("Device", "stock"),
		resource("Organization", "o"),
		resource("Provenance", "of-an-organization", targets("Organization/o")),
		resource("Provenance", "unknown", targets("Observation/gone")),
		resource("Provenance", "of-stock", targets("Device/stock")),
		resource("Provenance", "of-a-questionnaire", targets("Questionnaire/q")),
		resource("Questionnaire", "q"), // of no compartment
		resource("Group", "g"),
	))
	want := []export.LeftOut{
		{Type: "Condition", Reason: export.InvalidSubject, Count: 1},
		{Type: "Device", Reason: export.NoPatient, Count: 1},
		{Type: "Observation", Reason: export.ForeignPatient, Count: 1},
		{Type: "Observation", Reason: export.InvalidSubject, Count: 1},
		{Type: "Observation", Reason: export.NoPatient, Count: 2},
		{Type: "Observation", Reason: export.UnresolvedPatient, Count: 4},
		{Type: "Provenance", Reason: export.NoPatient, Count: 1},
		{Type: "Provenance", Reason: export.UnresolvedPatient, Count: 2},
	}
	got, err := src.LeftOut(t.Context())
	must(t, err)
	var tally export.Tally // sorts
	tally.AddAll(got)
	if got := tally.List(); !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// provenanceChains: a Provenance of a Provenance is about the same patients, in a chain of any length, in either order and
// in a loop. One that reaches very many patients is in no export.
func provenanceChains(t *testing.T, load Load) {
	const links, people = 20_000, 150
	for name, next := range map[string]func(i int) int{
		"ascending": func(i int) int { return i + 1 }, "descending": func(i int) int { return i - 1 },
	} {
		text := []string{resource("Patient", "a")}
		for i := range links {
			end := "Patient/a"
			if to := next(i); to >= 0 && to < links {
				end = fmt.Sprintf("Provenance/v%05d", to)
			}
			text = append(text, resource("Provenance", fmt.Sprintf("v%05d", i), targets(end)))
		}
		if got := len(ofPatients(t, load(t, lines(text...)), "Provenance", "a").got); got != links {
			t.Errorf("%s: %d of %d links are about the patient", name, got, links)
		}
	}
	var text, ids []string
	for i := range people {
		ids = append(ids, fmt.Sprintf("p%03d", i))
		text = append(text, resource("Patient", ids[i]), resource("Provenance", fmt.Sprintf("r%03d", i),
			targets("Patient/"+ids[i], fmt.Sprintf("Provenance/r%03d", (i+1)%people))))
	}
	src := load(t, lines(text...))
	if c := ofPatients(t, src, "Provenance", ids...); len(c.got) > 0 {
		t.Errorf("%d Provenance of a loop of %d patients were yielded", len(c.got), people)
	}
	left, err := src.LeftOut(t.Context())
	must(t, err)
	if len(left) != 1 || left[0].Type != "Provenance" || left[0].Count != people {
		t.Errorf("left out %v, want the loop", left)
	}
}

// bodies: bodies are served byte for byte, including long lines and all line ends.
func bodies(t *testing.T, load Load) {
	small := resource("Observation", "small", ref("subject", "Patient/a"),
		`"note" : [ { "text" : "grüße 😀 \u00e9" } ]`)
	large := resource("Observation", "large", ref("subject", "Patient/a"),
		`"note":[{"text":"`+strings.Repeat("0123456789abcdef", 5<<20/16)+`"}]`)
	last := resource("Observation", "last", ref("subject", "Patient/a"))
	second := resource("Observation", "second", ref("subject", "Patient/b"))
	src := load(t, map[string][]byte{
		"Observation.ndjson":       []byte("\ufeff" + small + "\r\n" + large + "\n\r\n\n" + last), // no newline at the end
		"sub/folder/second.ndjson": []byte(second + "\n"),
		"empty.ndjson":             {},
	})
	c := ofPatients(t, src, "Observation", "a", "b")
	want := map[string]string{"small": small, "large": large, "last": last, "second": second}
	for id, body := range want {
		if got := c.bodies["Observation/"+id]; got != body {
			t.Errorf("%s: got %d bytes, want %d", id, len(got), len(body))
		}
	}
	if len(c.bodies) != len(want) {
		t.Errorf("got %d resources, want %d", len(c.bodies), len(want))
	}
}

// stopping: errors of yield are returned unchanged, a cancelled context ends a stream, and calls are repeatable.
func stopping(t *testing.T, load Load) {
	var text []string
	for i := range 50 {
		text = append(text, resource("Patient", fmt.Sprint(i)),
			resource("Observation", fmt.Sprint(i), ref("subject", "Patient/a")),
			resource("Practitioner", fmt.Sprint(i)),
			resource("Provenance", fmt.Sprint(i), targets("Practitioner/0")))
	}
	src := load(t, lines(text...))
	calls := map[string]func(context.Context, func(source.Resource) error) error{
		"ForPatients": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.ForPatients(ctx, source.Query{Type: "Observation", Patients: []string{"a"}}, yield)
		},
		"ByID": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.ByID(ctx, source.ByIDQuery{Type: "Practitioner", IDs: []string{"1", "2", "3"}}, yield)
		},
		"About": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.About(ctx, source.AboutQuery{Refs: []source.Ref{{Type: "Practitioner", ID: "0"}}}, yield)
		},
		"Everything": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.Everything(ctx, source.EverythingQuery{Type: "Observation"}, yield)
		},
		"Everything of no patient": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.Everything(ctx, source.EverythingQuery{Type: "Practitioner", To: source.NoPatient}, yield)
		},
		"Patients": func(ctx context.Context, yield func(source.Resource) error) error {
			return src.Patients(ctx, time.Time{}, func(id string) error {
				return yield(source.Resource{Type: "Patient", ID: id, Body: []byte(resource("Patient", id))})
			})
		},
	}
	stop := errors.New("stop")
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			count := 0
			err := call(t.Context(), func(source.Resource) error { count++; return stop })
			if err != stop || count != 1 { //nolint:errorlint // unchanged
				t.Errorf("got %v after %d resources, want the error of yield unchanged after one", err, count)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			count = 0
			err = call(ctx, func(source.Resource) error { count++; cancel(); return nil })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled after the first resource: got %v after %d", err, count)
			}
			all := 0
			for range 2 {
				c := collect(t)
				must(t, call(t.Context(), c.take))
				if all != 0 && len(c.got) != all {
					t.Errorf("repeated: got %d resources, before %d", len(c.got), all)
				}
				all = len(c.got)
			}
		})
	}
}

func sizes(t *testing.T, load Load) {
	stored := []string{
		resource("Patient", "a"), resource("Patient", "b"),
		resource("Observation", "1", ref("subject", "Patient/a")),
		resource("Observation", "2", ref("subject", "Patient/b")),
		resource("Observation", "3"),
		resource("Practitioner", "p"),
		resource("Group", "g"),
		resource("AuditEvent", "e"),
	}
	got, err := load(t, lines(stored...)).Sizes(t.Context())
	must(t, err)
	want := map[string]source.TypeSize{}
	for _, line := range stored {
		typ := strings.Split(line, `"`)[3]
		want[typ] = source.TypeSize{Resources: want[typ].Resources + 1, Bytes: want[typ].Bytes + int64(len(line)) + 1}
	}
	if got.Patients != 2 || !reflect.DeepEqual(got.Types, want) {
		t.Errorf("got %+v, want 2 patients and %+v", got, want)
	}
	empty, err := load(t, map[string][]byte{}).Sizes(t.Context())
	if err != nil || empty.Patients != 0 || len(empty.Types) != 0 {
		t.Errorf("an empty store: %+v (%v)", empty, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
