package ndjson

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// about is a line of the type with the references at the path: the element, or an element and one below it.
func about(typ, id, path string, references ...string) string {
	var list []string
	element, below, nested := strings.Cut(path, ".")
	for _, r := range references {
		one := fmt.Sprintf(`{"reference":%q}`, r)
		if nested {
			one = fmt.Sprintf(`{%q:%s}`, below, one)
		}
		list = append(list, one)
	}
	return fmt.Sprintf(`{"resourceType":%q,"id":%q,%q:[%s]}`, typ, id, element, strings.Join(list, ","))
}

// everything returns the resources of a range, each with its subjects.
func everything(t testing.TB, src *Source, typ, from, to string) map[string]string {
	t.Helper()
	got := map[string]string{}
	must(t, src.Everything(t.Context(), source.EverythingQuery{Type: typ, From: from, To: to}, func(r source.Resource) error {
		if _, twice := got[r.ID]; twice || r.Type != typ {
			t.Errorf("%s/%s was yielded twice, or for %s", r.Type, r.ID, typ)
		}
		got[r.ID] = strings.Join(r.Subjects, " ")
		return nil
	}))
	return got
}

func oneFile(lines ...string) map[string][]byte {
	return map[string][]byte{"all.ndjson": []byte(strings.Join(lines, "\n") + "\n")}
}

// TestEverythingHasWhatIsAboutNoPatient: and ForPatients, About and LeftOut do not change for it. What is refused stays out.
func TestEverythingHasWhatIsAboutNoPatient(t *testing.T) {
	t.Parallel()
	text := []string{
		`{"resourceType":"Patient","id":"a"}`, observation("of-a", "a", ""), `{"resourceType":"Observation","id":"none"}`,
		about("Observation", "group", "subject", "Group/g"), about("Observation", "urn", "subject", "urn:uuid:x"),
		about("Observation", "foreign", "subject", "https://other.example/Patient/a"),
		about("Observation", "invalid", "subject", "Patient/a_b"), `{"resourceType":"Device","id":"stock"}`,
		`{"resourceType":"Organization","id":"o","contained":[{"resourceType":"Patient","id":"p"}]}`,
		about("Task", "t", "for", "Patient/a"), about("Group", "g", "member.entity", "Patient/a"),
		about("Provenance", "of-o", "target", "Organization/o"), about("Provenance", "of-a", "target", "Observation/of-a"),
		about("Provenance", "of-stock", "target", "Device/stock"), about("Provenance", "of-t", "target", "Task/t"),
		about("Provenance", "of-gone", "target", "Observation/gone"), `{"resourceType":"Provenance","id":"none"}`,
		about("Provenance", "of-a-and-t", "target", "Task/t", "Patient/a"),
		`{"resourceType":"Provenance","id":"contained","contained":[` +
			about("Observation", "x", "subject", "https://other.example/Patient/a") + `,{"resourceType":"Patient","id":"p"}]}`,
	}
	var many []string
	for n := range maxPatients + 1 {
		many = append(many, fmt.Sprintf("Patient/m%d", n))
	}
	text = append(text, about("Provenance", "many", "target", many...),
		about("Task", "many", "note.reference", append(many, many...)...),
		`{"resourceType":"Task","id":"long","x":"`+strings.Repeat("x", 1<<15)+`"}`, `{"resourceType":"Task","id":"7","Subject":1}`,
		about("Group", "many", "member.entity", append(many, many...)...))
	src := open(t, folder(t, oneFile(text...)), Config{batchSize: 2, Limits: source.Limits{MaxLine: 1 << 15, MaxReferences: 200}})
	unsure := source.Somebody
	withoutPatient := map[string]map[string]string{
		"Patient":     {},
		"Observation": {"none": "", "group": "", "urn": "", "foreign": "", "invalid": ""},
		"Device":      {"stock": ""}, "Task": {"t": ""}, "Group": {"g": ""}, "Goal": {}, "Organization": {"o": unsure},
		"Provenance": {"of-o": "", "of-stock": "", "of-t": unsure, "of-gone": unsure, "none": "", "many": unsure,
			"contained": unsure + " " + source.Foreigner},
	}
	ofPatients := map[string]map[string]string{"Patient": {"a": "a"}, "Observation": {"of-a": "a"},
		"Provenance": {"of-a": "a", "of-a-and-t": "a " + unsure}}
	for typ, want := range withoutPatient {
		if got := everything(t, src, typ, "", source.NoPatient); !maps.Equal(got, want) {
			t.Errorf("%s without a patient: got %q, want %q", typ, got, want)
		}
		if got := everything(t, src, typ, source.NoPatient, ""); !maps.Equal(got, ofPatients[typ]) {
			t.Errorf("%s of patients: got %q, want %q", typ, got, ofPatients[typ])
		}
		all := maps.Clone(want)
		maps.Copy(all, ofPatients[typ])
		for _, to := range []string{"", unsure, "~~"} {
			if got := everything(t, src, typ, "", to); !maps.Equal(got, all) {
				t.Errorf("all %s to %q: got %q, want %q", typ, to, got, all)
			}
		}
		if got := everything(t, src, typ, unsure, ""); len(got) > 0 {
			t.Errorf("%s from %q: got %q", typ, unsure, got)
		}
		if !fhir.InCompartment(typ) {
			continue
		}
		q := source.Query{Type: typ, Patients: []string{"", source.NoPatient, "a", unsure, source.Foreigner}}
		got := map[string]string{}
		must(t, src.ForPatients(t.Context(), q, func(r source.Resource) error {
			got[r.ID] = strings.Join(r.Subjects, " ")
			return nil
		}))
		if len(got) != len(ofPatients[typ]) || len(got) > 0 && !maps.Equal(got, ofPatients[typ]) {
			t.Errorf("%s by patient: got %q, want %q", typ, got, ofPatients[typ])
		}
	}
	var ids []string
	must(t, src.About(t.Context(), source.AboutQuery{Refs: []source.Ref{{Type: "Organization", ID: "o"}, {Type: "Task", ID: "t"}}},
		func(r source.Resource) error { ids = append(ids, r.ID); return nil }))
	if !slices.Equal(ids, []string{"of-o"}) {
		t.Errorf("about: %q", ids)
	}
	want := []string{
		"Device no_patient 1", "Group too_many_references 1", "Observation foreign_patient 1", "Observation invalid_subject 1",
		"Observation no_patient 2", "Observation unresolved_patient 1", "Provenance no_patient 2",
		"Provenance too_many_references 1", "Provenance unresolved_patient 3", "Task malformed 1", "Task too_long 1",
		"Task too_many_references 1",
	}
	if got := leftOut(t, src); !slices.Equal(got, want) {
		t.Errorf("left out %q\nwant %q", got, want)
	}
}

// TestRangesPartitionEverything: resources of no, one and several patients, held or not, in random ranges.
func TestRangesPartitionEverything(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range 30 {
		var text, ids []string
		smallest := map[string]map[string]string{"Appointment": {}, "Provenance": {}} // by id
		for n := range 1 + random.IntN(12) {
			ids = append(ids, fmt.Sprintf("%c%d", "Zaz-.9"[random.IntN(6)], n))
			if random.IntN(3) > 0 {
				text = append(text, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, ids[n]))
			}
		}
		for n := range random.IntN(60) {
			var of, targets []string
			for range random.IntN(4) {
				of = append(of, ids[random.IntN(len(ids))])
				targets = append(targets, "Patient/"+of[len(of)-1])
			}
			typ, path := "Appointment", "participant.actor"
			if random.IntN(2) == 0 {
				typ, path = "Provenance", "target"
			}
			text = append(text, about(typ, fmt.Sprint(n), path, targets...), about(typ, fmt.Sprint(n), path, targets...))
			slices.Sort(of)
			smallest[typ][fmt.Sprint(n)] = append(of, "")[0]
		}
		src := open(t, folder(t, oneFile(text...)), Config{batchSize: 1 + random.IntN(5)})
		for typ, want := range smallest {
			cuts := []string{"", ""}
			for range random.IntN(5) {
				cuts = append(cuts, []string{source.NoPatient, "~", "A", "a5x", ids[random.IntN(len(ids))]}[random.IntN(5)])
			}
			slices.Sort(cuts)
			cuts = append(slices.Compact(cuts), "")
			got := map[string]bool{}
			for n, from := range cuts[:len(cuts)-1] {
				to := cuts[n+1]
				for id := range everything(t, src, typ, from, to) {
					if got[id] || want[id] < from || to != "" && want[id] >= to {
						t.Errorf("%s/%s of %q was in the range %q to %q, or in two", typ, id, want[id], from, to)
					}
					got[id] = true
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: the ranges %q have %d of %d resources", typ, cuts, len(got), len(want))
			}
			if got := everything(t, src, typ, "b", "a"); len(got) > 0 {
				t.Errorf("a range with its ends exchanged: %v", got)
			}
		}
	}
}

func TestPatientsAreThoseThatAreHeld(t *testing.T) {
	t.Parallel()
	const deleted = `{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Patient/deleted"}}]}`
	src := open(t, folder(t, oneFile(
		`{"resourceType":"Patient","id":"b"}`, observation("1", "only-referenced", ""), `{"resourceType":"Patient","id":"B"}`,
		`{"resourceType":"Patient","id":"b","active":true}`, `{"resourceType":"Patient","id":"deleted"}`, deleted,
		`{"resourceType":"Patient","id":"c","contained":[`+observation("x", "contained", "")+`,{"resourceType":"Patient","id":"p"}]}`,
		`{"resourceType":"Patient","id":"refused"}`, `{"resourceType":"Patient","id":"refused","Subject":1}`,
		`{"resourceType":"Patient","id":"a","contained":[`+observation("x", "b", "")+`]}`, about("Provenance", "v", "target", "Task/t"),
	)), Config{})
	var ids []string
	must(t, src.Patients(t.Context(), time.Now(), func(id string) error { ids = append(ids, id); return nil }))
	if want := []string{"B", "a", "b", "c"}; !slices.Equal(ids, want) {
		t.Errorf("got %q, want %q", ids, want)
	}
}

// TestReferencesOfEveryTypeAreResolved: those of lines of no compartment are not counted when they match nothing.
func TestReferencesOfEveryTypeAreResolved(t *testing.T) {
	t.Parallel()
	src := open(t, folder(t, oneFile(
		`{"resourceType":"Patient","id":"a"}`, about("Group", "g", "member.entity", "urn:uuid:a"),
		about("Task", "t", "for", "urn:uuid:a", "urn:uuid:none", "Practitioner?identifier=1"),
		about("Observation", "o", "focus", "urn:uuid:t"), about("Provenance", "v", "target", "urn:uuid:g", "urn:uuid:a"),
	)), Config{})
	for typ, want := range map[string]string{
		"Group": about("Group", "g", "member.entity", "Patient/a"), "Observation": about("Observation", "o", "focus", "Task/t"),
		"Task":       about("Task", "t", "for", "Patient/a", "urn:uuid:none", "Practitioner?identifier=1"),
		"Provenance": about("Provenance", "v", "target", "Group/g", "Patient/a"),
	} {
		must(t, src.Everything(t.Context(), source.EverythingQuery{Type: typ}, func(r source.Resource) error {
			if string(r.Body) != want {
				t.Errorf("%s: got %s, want %s", typ, r.Body, want)
			}
			return nil
		}))
	}
	if got := everything(t, src, "Provenance", "a", "b"); got["v"] != "a "+source.Somebody { // a Group may name others
		t.Errorf("the Provenance of a patient and a Group: %q", got)
	}
	if got := leftOut(t, src); !slices.Equal(got, []string{"Observation no_patient 1"}) {
		t.Errorf("left out %q", got)
	}
}

func TestEverythingOfAChangedFile(t *testing.T) {
	t.Parallel()
	dir := folder(t, oneFile(about("Task", "1", "for")))
	src := open(t, dir, Config{})
	must(t, os.WriteFile(filepath.Join(dir, "all.ndjson"), []byte(about("Task", "2", "for")), 0o600))
	err := src.Everything(t.Context(), source.EverythingQuery{Type: "Task"}, func(r source.Resource) error {
		t.Errorf("%s was yielded", r.ID)
		return nil
	})
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}
