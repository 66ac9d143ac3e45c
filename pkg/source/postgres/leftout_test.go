package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// leftOut checks what the source leaves out, as "Type reason count".
func (s *store) leftOut(want ...string) {
	s.t.Helper()
	list, err := s.src.LeftOut(s.t.Context())
	must(s.t, err)
	var got []string
	for _, left := range list {
		got = append(got, fmt.Sprintf("%s %s %d", left.Type, left.Reason, left.Count))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Errorf("left out %q, want %q", got, want)
	}
	// The totals are those of the rows.
	if n := s.count(`SELECT count(*) FROM (SELECT type, left_out AS reason, count(*) AS resources FROM resource
			WHERE ended IS NULL AND left_out IS NOT NULL GROUP BY 1, 2) AS r
		FULL JOIN (SELECT * FROM left_out WHERE held AND resources <> 0) AS o USING (type, reason, resources)
		WHERE o.held IS NULL OR r.type IS NULL`); n != 0 {
		s.t.Errorf("%d totals differ from the rows", n)
	}
}

func TestLeftOutCountsWhatIsCurrent(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	of := func(id, subject string) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":%q,"subject":{"reference":%q}}`, id, subject)
	}
	load := func(files map[string][]byte, given ...export.LeftOut) {
		t.Helper()
		load := s.begin(keeping())
		s.stage(load, files)
		_, err := load.Seal(t.Context(), given, nil)
		must(t, err)
		must(t, load.Close(t.Context()))
	}
	load(ndjson(`{"resourceType":"Patient","id":"a"}`, of("held", "Patient/a"), of("urn", "urn:uuid:none"), of("urn2", "urn:uuid:none"),
		of("foreign", "https://h/Patient/a"), of("bad", "Patient/a_"), of("none", "Location/l")),
		export.LeftOut{Type: "Observation", Reason: export.Malformed, Count: 3}, export.LeftOut{Reason: export.UnknownType, Count: 1})
	s.leftOut(" unknown_type 1", "Observation foreign_patient 1", "Observation invalid_subject 1", "Observation malformed 3",
		"Observation no_patient 1", "Observation unresolved_patient 2")
	s.expect(time.Time{}, "Observation", "held", "a")

	load(ndjson(`{"resourceType":"Condition","id":"c"}`)) // another type
	s.leftOut("Condition no_patient 1", "Observation foreign_patient 1", "Observation invalid_subject 1", "Observation malformed 3",
		"Observation no_patient 1", "Observation unresolved_patient 2")

	load(ndjson(of("urn", "Patient/a"), of("urn2", "urn:uuid:none"), of("bad", "urn:uuid:none")))
	s.leftOut("Condition no_patient 1", "Observation foreign_patient 1", "Observation no_patient 1", "Observation unresolved_patient 2")
	s.expect(time.Time{}, "Observation", "held urn", "a")

	cfg := keeping()
	cfg.DeleteMissing = true
	s.loadWith(ndjson(of("held", "Patient/a")), cfg)
	s.leftOut("Condition no_patient 1")
	s.sizesHold()
}

// TestSomebody: a line that is about a patient and somebody who cannot be identified is never about that patient alone.
func TestSomebody(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	appointment := func(id string, actors ...string) string {
		return `{"resourceType":"Appointment","id":"` + id + `","participant":[{"actor":` + strings.Join(actors, `},{"actor":`) + `}]}`
	}
	const own, more = `{"reference":"Patient/a"}`, `{"reference":"Patient/b"}`
	s.loadWith(ndjson(`{"resourceType":"Patient","id":"a"}`, `{"resourceType":"Practitioner","id":"x"}`,
		appointment("own", own), appointment("identifier", own, `{"identifier":{"value":"MRN"}}`),
		appointment("urn", own, `{"reference":"urn:uuid:none"}`), appointment("foreign", more, own, `{"reference":"https://h/Patient/a"}`),
		observation("o", "a", 1),
		provenance("literal", "Observation/o"),
		provenance("p-urn", "Observation/o", "urn:uuid:none"), provenance("p-gone", "Observation/o", "Observation/gone"),
		provenance("p-type", "Observation/o", "Group/g"), provenance("p-practitioner", "Observation/o", "Practitioner/gone"),
		provenance("p-further", "Provenance/p-urn", "Patient/a"), provenance("p-appointment", "Appointment/foreign"),
		`{"resourceType":"Provenance","id":"p-identifier","target":[{"reference":"Observation/o"},{"identifier":{"value":"MRN"}}]}`,
		provenance("org", "Practitioner/x"), provenance("org-gone", "Practitioner/x", "Practitioner/gone"),
		provenance("org-urn", "Practitioner/x", "urn:uuid:none"), provenance("org-ring", "Practitioner/x", "Provenance/org-ring"),
		provenance("nobody", "Observation/gone"),
	), keeping())
	for id, want := range map[string]string{
		"Appointment/own": "a", "Appointment/identifier": "a+~", "Appointment/urn": "a+~", "Appointment/foreign": "a+b+~foreign",
		"Provenance/literal": "a", "Provenance/p-urn": "a+~", "Provenance/p-gone": "a+~", "Provenance/p-type": "a+~",
		"Provenance/p-practitioner": "a+~", "Provenance/p-further": "a+~", "Provenance/p-appointment": "a+b+~foreign",
		"Provenance/p-identifier": "a+~", "Provenance/nobody": "",
	} {
		typ, id, _ := strings.Cut(id, "/")
		subjects, _, _ := strings.Cut(s.read(time.Time{}, typ, "a")[id], " ")
		if subjects != want {
			t.Errorf("%s/%s is about %q, want %q", typ, id, subjects, want)
		}
	}
	s.expect(time.Time{}, "Appointment", "foreign", "b")
	if n := s.count("SELECT count(*) FROM resource WHERE patient LIKE '~%'") +
		s.count("SELECT count(*) FROM additional_subject WHERE patient LIKE '~%'"); n != 0 {
		t.Errorf("%d rows have a sentinel as a patient", n)
	}
	var about []string
	q := source.AboutQuery{Refs: []source.Ref{{Type: "Practitioner", ID: "x"}, {Type: "Practitioner", ID: "gone"}}}
	must(t, s.src.About(t.Context(), q, func(r source.Resource) error { about = append(about, r.ID); return nil }))
	if !slices.Equal(about, []string{"org"}) {
		t.Errorf("about the practitioner: %v, want org", about)
	}
	s.leftOut("Provenance no_patient 1", "Provenance unresolved_patient 3")

	// What arrives later is held.
	s.loadWith(ndjson(observation("gone", "a", 1), `{"resourceType":"Practitioner","id":"gone"}`), keeping())
	for id, want := range map[string]string{"p-gone": "a", "p-practitioner": "a", "nobody": "a", "p-urn": "a+~"} {
		if subjects, _, _ := strings.Cut(s.read(time.Time{}, "Provenance", "a")[id], " "); subjects != want {
			t.Errorf("%s is about %q, want %q", id, subjects, want)
		}
	}
	s.leftOut("Provenance no_patient 1", "Provenance unresolved_patient 1")
	s.sizesHold()
}

// TestChainsOfProvenance: in either order, a change at the end included, and with more patients than one may have.
func TestChainsOfProvenance(t *testing.T) {
	t.Parallel()
	shared := newStore(t)
	const links = 2000
	for name, own := range map[string]bool{"one patient": false, "a patient each": true} {
		for order, number := range map[string]func(i int) int{
			"ascending": func(i int) int { return i }, "descending": func(i int) int { return links - 1 - i },
		} {
			t.Run(name+"/"+order, func(t *testing.T) {
				s := shared.cleared(t)
				lines := []string{observation("o", "end", 1)}
				for i := range links {
					n := number(i)
					targets := []string{fmt.Sprint("Provenance/v", n+1)}
					if n == links-1 {
						targets = []string{"Observation/o"}
					}
					if own {
						lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":"p%d"}`, n))
						targets = append(targets, fmt.Sprint("Patient/p", n))
					}
					lines = append(lines, provenance(fmt.Sprint("v", n), targets...))
				}
				s.loadWith(ndjson(lines...), keeping())
				if own {
					s.leftOut(fmt.Sprintf("Provenance too_many_references %d", links-99))
					// The last one is about p1999 and end, the 99th from the end about a hundred.
					if n := len(s.read(time.Time{}, "Provenance", "end")); n != 99 {
						t.Errorf("%d Provenance are about the end, want 99", n)
					}
					for id, want := range map[string]string{"v1": "", "v1900": "", "v1999": "end+p1999"} {
						subjects, _, _ := strings.Cut(s.read(time.Time{}, "Provenance", "p"+id[1:])[id], " ")
						if subjects != want {
							t.Errorf("%s is about %q, want %q", id, subjects, want)
						}
					}
					return
				}
				s.leftOut()
				if n := len(s.read(time.Time{}, "Provenance", "end")); n != links {
					t.Errorf("%d Provenance are about the end, want %d", n, links)
				}
				s.loadWith(ndjson(observation("o", "moved", 2)), keeping())
				if n := len(s.read(time.Time{}, "Provenance", "moved")); n != links {
					t.Errorf("%d Provenance are about the patient of the end, want %d", n, links)
				}
				s.expect(time.Time{}, "Provenance", "", "end")
			})
		}
	}
}

// TestTargetsWithManyPatients: the cost of a Provenance does not grow with the patients of its target.
func TestTargetsWithManyPatients(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	actors := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`{"actor":{"reference":"Patient/p%04d"}}`, i))
		}
		return strings.Join(list, ",")
	}
	s.loadWith(ndjson(`{"resourceType":"Appointment","id":"100","participant":[`+actors(100)+`]}`,
		`{"resourceType":"Appointment","id":"101","participant":[`+actors(101)+`]}`,
		`{"resourceType":"Appointment","id":"5000","participant":[`+actors(5000)+`]}`,
		provenance("few", "Appointment/100"), provenance("many", "Appointment/101"), provenance("crowd", "Appointment/5000")), keeping())
	s.expect(time.Time{}, "Appointment", "100 101 5000", "p0099")
	s.expect(time.Time{}, "Provenance", "few", "p0000")
	s.expect(time.Time{}, "Provenance", "few", "p0099")
	s.expect(time.Time{}, "Provenance", "", "p0100")
	s.leftOut("Provenance too_many_references 2")
}

// TestTrimmedPatients: nothing remains of a patient whose history was trimmed.
func TestTrimmedPatients(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	appointment := func(id string, patients ...string) string {
		return `{"resourceType":"Appointment","id":"` + id + `","participant":[{"actor":{"reference":"Patient/` +
			strings.Join(patients, `"}},{"actor":{"reference":"Patient/`) + `"}}]}`
	}
	s.loadWith(ndjson(appointment("deleted", "a", "gone"), appointment("kept", "a", "b", "c"), observation("o", "gone", 1)), keeping())
	cfg := keeping()
	cfg.DeleteMissing = true
	s.loadWith(ndjson(appointment("kept", "a", "b"), observation("p", "a", 1)), cfg)
	if n := s.count("SELECT count(*) FROM additional_subject WHERE patient IN ('gone', 'c')"); n != 2 {
		t.Errorf("%d entries of the kept history, want 2", n)
	}
	s.loadWith(ndjson(observation("q", "a", 1)), postgres.LoadConfig{Parallel: 1}) // keeps no history
	if n := s.count("SELECT count(*) FROM additional_subject"); n != 1 {
		t.Errorf("%d entries are left, want that of b", n)
	}
	if n := s.count("SELECT count(*) FROM tombstone"); n != 0 {
		t.Errorf("%d tombstones are left", n)
	}
	s.expect(time.Time{}, "Appointment", "kept", "b")

	// Neither does an undone load leave anything.
	load := s.begin(keeping())
	s.stage(load, ndjson(appointment("new", "x", "y"), appointment("kept", "a", "b", "z")))
	if _, err := load.Seal(t.Context(), nil, failing); err == nil {
		t.Fatal("the load was sealed")
	}
	must(t, load.Close(t.Context()))
	s.loadWith(ndjson(observation("q", "a", 1)), keeping())
	if n := s.count("SELECT count(*) FROM additional_subject"); n != 1 {
		t.Errorf("%d entries are left, want that of b", n)
	}
}

func TestDeletions(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(observation("before", "a", 1), observation("after", "a", 1), observation("only", "a", 1),
		`{"resourceType":"Condition","id":"c","subject":{"reference":"Patient/a"}}`, `{"resourceType":"Patient","id":"p"}`,
		provenance("gone", "Patient/p"), provenance("stays", "Patient/p")), keeping())
	before := s.snapshot()
	s.expect(before, "Provenance", "gone stays", "p")
	load := s.begin(keeping())
	line := func(id string, place int64) postgres.Line {
		body := []byte(observation(id, "a", 9))
		facts, err := new(fhir.Scanner).Scan(body)
		must(t, err)
		return postgres.Line{Place: place, Facts: facts, Body: body}
	}
	must(t, load.Stage(t.Context(), "Observation", []postgres.Line{line("before", 1), line("after", 5), line("new", 1), line("again", 5)}))
	var list []postgres.Deletion
	for _, id := range []string{"before", "after", "only", "new", "again", "unknown", "only"} {
		list = append(list, postgres.Deletion{Place: 3, Ref: fhir.Ref{Type: "Observation", ID: id}})
	}
	list = append(list, postgres.Deletion{Place: 4, Ref: fhir.Ref{Type: "Condition", ID: "c"}},
		postgres.Deletion{Place: 6, Ref: fhir.Ref{Type: "Patient", ID: "p"}},
		postgres.Deletion{Place: 7, Ref: fhir.Ref{Type: "Provenance", ID: "gone"}})
	must(t, load.Delete(t.Context(), list))
	merged, err := load.Seal(t.Context(), nil, nil)
	must(t, err)
	must(t, load.Close(t.Context()))
	if want := (postgres.Merged{Added: 1, Replaced: 1, Deleted: 5}); merged != want {
		t.Errorf("merged %+v, want %+v", merged, want)
	}
	s.expect(time.Time{}, "Observation", "after again", "a")
	s.expect(time.Time{}, "Condition", "", "a")
	s.expect(time.Time{}, "Patient", "", "p")
	if got := s.read(time.Time{}, "Provenance", "p"); len(got) != 1 || !strings.HasPrefix(got["stays"], "p+~ ") {
		t.Errorf("Provenance of a deleted patient: %v", got)
	}
	s.expect(before, "Observation", "after before only", "a")
	s.sizesHold()
}

// TestWhatIsDeletedAndThereAgain: what follows a deletion replaces the newer version of the store, or withholds it.
func TestWhatIsDeletedAndThereAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	version := func(id, number, patient, more string) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":%q,"meta":{"versionId":%q},"subject":{"reference":"Patient/%s"}%s}`,
			id, number, patient, more)
	}
	gone := func(id string) string {
		return `{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Observation/` + id + `"}}]}`
	}
	s.loadWith(ndjson(version("lower", "5", "a", ""), version("refused", "5", "a", ""), version("same", "5", "a", "")), keeping())
	before := s.snapshot()
	merged := s.loadWith(ndjson(gone("lower"), version("lower", "1", "b", ""), gone("refused"), version("refused", "1", "b", `,"Subject":{}`),
		gone("same"), version("same", "5", "a", "")), keeping())
	if want := (postgres.Merged{Replaced: 1, Unchanged: 1, Deleted: 1}); merged != want {
		t.Errorf("merged %+v, want %+v", merged, want)
	}
	s.expect(time.Time{}, "Observation", "same", "a")
	s.expect(time.Time{}, "Observation", "lower", "b")
	s.expect(before, "Observation", "lower refused same", "a")
	s.sizesHold()
}

// BenchmarkProvenance loads chains.
func BenchmarkProvenance(b *testing.B) {
	const links = 100_000
	for _, order := range []string{"ascending", "descending"} {
		b.Run(order, func(b *testing.B) {
			var lines []string
			for i := range links {
				lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":"p%d"}`, i),
					provenance(fmt.Sprint("v", i), fmt.Sprint("Patient/p", i), fmt.Sprint("Provenance/v", i+1)))
			}
			if order == "descending" {
				slices.Reverse(lines)
			}
			s := newStore(b)
			files := ndjson(append(lines, observation("o", "p0", 1), provenance(fmt.Sprint("v", links), "Observation/o"))...)
			for b.Loop() {
				s.load(files)
			}
		})
	}
	b.Run("change at the end", func(b *testing.B) {
		lines := []string{observation("o", "p0", 1), provenance(fmt.Sprint("v", links), "Observation/o")}
		for i := range links {
			lines = append(lines, provenance(fmt.Sprint("v", i), fmt.Sprint("Provenance/v", i+1)))
		}
		s := newStore(b)
		s.load(ndjson(lines...))
		n := 0
		for b.Loop() {
			n++
			s.load(ndjson(observation("o", fmt.Sprint("q", n), 2)))
		}
	})
}

// TestIdentifiersOfOlderVersionsNameNobody: a version that is not the newest, or is deleted, may have had the identifier of
// somebody else.
func TestIdentifiersOfOlderVersionsNameNobody(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	patient := func(id, version, identifier string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"versionId":%q},"identifier":[{"system":"s","value":%q}]}`, id, version, identifier)
	}
	s.loadWith(ndjson(patient("p1", "5", "1"), patient("p2", "5", "2")), keeping())
	load := s.begin(keeping())
	s.stage(load, ndjson(patient("p1", "3", "2"), `{"resourceType":"Observation","id":"o","subject":{"reference":"Patient?identifier=s|2"}}`))
	_, err := load.Seal(t.Context(), nil, nil)
	if err == nil || !strings.Contains(err.Error(), "newest version") {
		t.Errorf("got %v", err)
	}
	must(t, load.Close(t.Context()))
	s.expect(time.Time{}, "Observation", "", "p1")
	s.loadWith(ndjson(`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient?identifier=s|2"}}`), keeping())
	s.expect(time.Time{}, "Observation", "o", "p2")
}

// TestAboutYieldsWhatNewerRulesRefuse: the worker withholds and counts it. An error would end the export.
func TestAboutYieldsWhatNewerRulesRefuse(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(`{"resourceType":"Practitioner","id":"x"}`, provenance("v", "Practitioner/x")), keeping())
	s.exec(`UPDATE resource_provenance SET body = replace(body, '"target"', '"Target":{},"target"')`)
	var got []string
	q := source.AboutQuery{Refs: []source.Ref{{Type: "Practitioner", ID: "x"}}}
	err := s.src.About(t.Context(), q, func(r source.Resource) error { got = append(got, r.ID); return nil })
	if err != nil || !slices.Equal(got, []string{"v"}) {
		t.Errorf("got %v (%v)", got, err)
	}
}

// TestRefusedVersionsWithholdOlderOnes: of the store too, which leaves a tombstone, and nothing is resolved by
// their identifiers.
func TestRefusedVersionsWithholdOlderOnes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	patient := func(version, more string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":"p","meta":{"versionId":%q},"identifier":[{"system":"s","value":"1"}]%s}`, version, more)
	}
	named := `{"resourceType":"Observation","id":"o","subject":{"reference":"Patient?identifier=s|1"}}`
	s.loadWith(ndjson(patient("2", "")), keeping())
	before := s.snapshot()
	if merged := s.loadWith(ndjson(patient("1", `,"Subject":{}`)), keeping()); merged != (postgres.Merged{}) {
		t.Errorf("an older version is refused: %+v", merged)
	}
	if merged := s.loadWith(ndjson(patient("2", `,"Subject":{}`)), keeping()); merged != (postgres.Merged{}) {
		t.Errorf("the same version is refused: %+v", merged)
	}
	s.expect(time.Time{}, "Patient", "p", "p")
	if merged := s.loadWith(ndjson(patient("3", `,"Subject":{}`), named), keeping()); merged != (postgres.Merged{Added: 1, Deleted: 1}) {
		t.Errorf("the newest version is refused: %+v", merged)
	}
	s.expect(time.Time{}, "Patient", "", "p")
	s.expect(before, "Patient", "p", "p")
	s.expect(time.Time{}, "Observation", "", "p")
	s.leftOut("Observation unresolved_patient 1")
	s.sizesHold()
	if n := s.count("SELECT count(*) FROM tombstone"); n != 1 {
		t.Errorf("%d tombstones", n)
	}
	s.loadWith(ndjson(patient("4", ""), named), keeping())
	s.expect(time.Time{}, "Observation", "o", "p")
}
