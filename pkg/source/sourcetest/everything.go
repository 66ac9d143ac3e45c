package sourcetest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// everythingOf reads one type between two bounds.
func everythingOf(t *testing.T, src source.Source, typ, from, to string) *collector {
	t.Helper()
	c := collect(t)
	q := source.EverythingQuery{Type: typ, From: from, To: to, AsOf: time.Now()}
	if err := src.Everything(t.Context(), q, c.take); err != nil {
		t.Fatalf("everything of %s from %q to %q: %v", typ, from, to, err)
	}
	return c
}

// patientsOf reads the ids of all patients.
func patientsOf(t *testing.T, src source.Source) (ids []string) {
	t.Helper()
	must(t, src.Patients(t.Context(), time.Now(), func(id string) error { ids = append(ids, id); return nil }))
	return ids
}

// known returns the patients among the subjects: whether a resource without a patient has source.Somebody is up to the
// driver.
func known(subjects []string) []string {
	return slices.DeleteFunc(slices.Clone(subjects), func(id string) bool { return !fhir.IsID(id) })
}

// everyType: a source holds every type, and returns its resources byte for byte (system level).
func everyType(t *testing.T, load Load) {
	var text []string
	want := map[string]string{}
	for _, typ := range fhir.StoredTypes() {
		line := resource(typ, "x", `"text" : { "div": "<div>é</div>" }`)
		want[typ] = line
		text = append(text, line)
	}
	src := load(t, lines(text...))
	for typ, line := range want {
		c := everythingOf(t, src, typ, "", "")
		if len(c.got) != 1 || c.bodies[typ+"/x"] != line {
			t.Errorf("%s: got %v", typ, c.bodies)
		}
	}
	sizes, err := src.Sizes(t.Context())
	must(t, err)
	for typ, line := range want {
		if got := sizes.Types[typ]; got != (source.TypeSize{Resources: 1, Bytes: int64(len(line)) + 1}) {
			t.Errorf("size of %s: %+v", typ, got)
		}
	}
	left, err := src.LeftOut(t.Context())
	must(t, err)
	for _, l := range left {
		if !fhir.InCompartment(l.Type) {
			t.Errorf("left out: %+v", l)
		}
	}
	for _, typ := range []string{"Bundle", "OperationOutcome", "Parameters", "Nonsense", ""} {
		c := collect(t)
		if err := src.Everything(t.Context(), source.EverythingQuery{Type: typ}, c.take); err == nil || len(c.got) > 0 {
			t.Errorf("everything of %q: %v, error %v; want nothing and an error", typ, c.got, err)
		}
	}
}

// everyTypeHasOneVersion: which version counts does not depend on the type.
func everyTypeHasOneVersion(t *testing.T, load Load) {
	version := func(id, number string, more ...string) string {
		return resource("Questionnaire", id, append([]string{fmt.Sprintf(`"meta":{"versionId":%q}`, number)}, more...)...)
	}
	gone := `{"resourceType":"Bundle","type":"transaction","entry":[` +
		`{"request":{"method":"DELETE","url":"Questionnaire/deleted"}}]}`
	src := load(t, lines(
		version("newest-first", "2", `"status":"draft"`), version("newest-first", "1"),
		version("newest-last", "1"), version("newest-last", "2", `"status":"draft"`),
		version("malformed", "1"), version("malformed", "2", `"meta":{}`),
		version("broken", "1"), version("broken", "2")+"}",
		version("deleted", "1"), gone,
	))
	c := everythingOf(t, src, "Questionnaire", "", "")
	// Of two metas neither counts, so that the older version is served.
	want := []string{"Questionnaire/malformed", "Questionnaire/newest-first", "Questionnaire/newest-last"}
	if got := slices.Sorted(maps.Keys(c.got)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, name := range want[1:] {
		if !strings.Contains(c.bodies[name], `"draft"`) {
			t.Errorf("%s: the wrong version: %s", name, c.bodies[name])
		}
	}
}

// everything: each resource is in one range, that of the smallest of its patients, or of none (system level).
func everything(t *testing.T, load Load) {
	actors := func(first, second string) string {
		return `"participant":[{` + ref("actor", first) + `},{` + ref("actor", second) + `}]`
	}
	src := load(t, lines(
		resource("Patient", "b"), resource("Patient", "B"), resource("Patient", "c-1"),
		resource("Observation", "of-b", ref("subject", "Patient/b")),
		resource("Observation", "of-B", ref("subject", "Patient/B")),
		resource("Observation", "of-unheld", ref("subject", "Patient/a.unheld")),
		resource("Observation", "of-nobody"),
		resource("Observation", "of-a-group", ref("subject", "Group/g")),
		resource("Observation", "of-somebody", ref("subject", "urn:uuid:x")),
		resource("Observation", "of-a-foreigner", ref("subject", "https://elsewhere.example/Patient/b")),
		resource("Appointment", "two", actors("Patient/c-1", "Patient/b")),
		resource("Appointment", "unsure", actors("Patient/b", "urn:uuid:x")),
		resource("Device", "implant", ref("patient", "Patient/c-1")), resource("Device", "stock"),
		resource("Organization", "o"), resource("Questionnaire", "q"),
		resource("Group", "g", `"type":"person"`, `"actual":true`, `"member":[{"entity":{"reference":"Patient/b"}}]`),
		resource("Task", "of-b", ref("for", "Patient/b")),
		resource("Person", "b", `"link":[{"target":{"reference":"Patient/b"}}]`),
		resource("Provenance", "of-two", targets("Patient/c-1", "Observation/of-b")),
		resource("Provenance", "unsure", targets("Patient/c-1", "Questionnaire/q")),
		resource("Provenance", "of-an-organization", targets("Organization/o")),
		resource("Provenance", "of-a-questionnaire", targets("Questionnaire/q")),
		resource("Provenance", "of-unknown", targets("Observation/gone")),
	))
	b, c1 := []string{"b"}, []string{"c-1"}
	all := map[string]names{
		"Patient": {"Patient/b": b, "Patient/B": {"B"}, "Patient/c-1": c1},
		"Observation": {"Observation/of-b": b, "Observation/of-B": {"B"}, "Observation/of-unheld": {"a.unheld"},
			"Observation/of-nobody": nil, "Observation/of-a-group": nil, "Observation/of-somebody": nil,
			"Observation/of-a-foreigner": nil},
		"Appointment":   {"Appointment/two": {"b", "c-1"}, "Appointment/unsure": {"b", source.Somebody}},
		"Device":        {"Device/implant": c1, "Device/stock": nil},
		"Organization":  {"Organization/o": nil},
		"Questionnaire": {"Questionnaire/q": nil}, "Group": {"Group/g": nil}, "Task": {"Task/of-b": nil},
		"Person": {"Person/b": nil},
		"Provenance": {"Provenance/of-two": {"b", "c-1"}, "Provenance/unsure": {"c-1", source.Somebody},
			"Provenance/of-an-organization": nil, "Provenance/of-a-questionnaire": nil, "Provenance/of-unknown": nil},
		"Goal": {}, "ValueSet": {}, // types that the store does not hold
	}
	bounds := []string{"", source.NoPatient, "-", "A", "B", "B-", "a", "a.unheld", "b", "b-", "c-1", "d", "z"}
	for typ, want := range all {
		for i, from := range bounds {
			for _, to := range append(slices.Clone(bounds[i+1:]), "") {
				inRange := names{}
				for name, subjects := range want {
					first := ""
					if len(subjects) > 0 {
						first = subjects[0]
					}
					if from <= first && (to == "" || first < to) {
						inRange[name] = subjects
					}
				}
				got := everythingOf(t, src, typ, from, to).got
				for name, subjects := range got {
					if len(known(subjects)) == 0 {
						got[name] = nil
					}
				}
				if !reflect.DeepEqual(got, inRange) {
					t.Errorf("%s from %q to %q: got %v, want %v", typ, from, to, got, inRange)
				}
			}
		}
	}
	if got, want := patientsOf(t, src), []string{"B", "b", "c-1"}; !slices.Equal(got, want) {
		t.Errorf("patients %v, want %v", got, want)
	}
	// A target outside the compartment may be about a patient that its type does not name: no export of patients has the
	// Provenance, unless it is also about a patient, and then it is withheld.
	c := collect(t)
	must(t, src.About(t.Context(), source.AboutQuery{AsOf: time.Now(), Refs: []source.Ref{
		{Type: "Organization", ID: "o"}, {Type: "Questionnaire", ID: "q"}}}, c.take))
	if want := (names{"Provenance/of-an-organization": nil}); !reflect.DeepEqual(c.got, want) {
		t.Errorf("about: got %v, want %v", c.got, want)
	}
}

// patients: the ids of the held Patient resources, each once, in byte order.
func patients(t *testing.T, load Load) {
	if got := patientsOf(t, load(t, map[string][]byte{})); len(got) > 0 {
		t.Errorf("patients of an empty store: %v", got)
	}
	const people = 3000
	text := []string{
		resource("Observation", "o", ref("subject", "Patient/unheld")), resource("Group", "group"),
		resource("Patient", "deleted"),
		`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/deleted"}}]}`,
	}
	var want []string
	for i := range people {
		id := fmt.Sprint("p", (i*7)%people, []string{"", ".x", "-X", "A"}[i%4])
		want = append(want, id)
		text = append(text, resource("Patient", id), resource("Patient", id, `"active":true`))
	}
	slices.Sort(want)
	if got := patientsOf(t, load(t, lines(text...))); !slices.Equal(got, want) {
		t.Errorf("got %d patients, want %d in byte order", len(got), len(want))
	}
}
