package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
)

func TestWindows(t *testing.T) {
	t.Parallel()
	sourcetest.Windows(t, 4, openHistory)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	sourcetest.Refusals(t, openHistory)
}

func openHistory(t *testing.T) (source.Source, func(lines ...string)) {
	t.Helper()
	s := newStore(t)
	return s.src, func(lines ...string) {
		s.loadWith(ndjson(lines...), postgres.LoadConfig{Parallel: 2, History: time.Hour})
	}
}

// TestWindowPaths reads what a small second load changed, by every path: all return the same, and the index of changes is
// chosen where it is cheaper. After the first load everything has changed.
func TestWindowPaths(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const people, each = 600, 8
	keep := postgres.LoadConfig{Parallel: 2, History: time.Hour}
	observed := func(i, j, version int) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d","meta":{"versionId":"%d","lastUpdated":"2026-01-%02dT00:00:00Z"},`+
			`"subject":{"reference":"Patient/%s"}}`, numbered(i), j, version, version, numbered(i))
	}
	var all, first, second []string
	for i := range people {
		all = append(all, numbered(i))
		first = append(first, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, numbered(i)))
		for j := range each {
			first = append(first, observed(i, j, 1))
		}
		if i%20 == 0 { // two or three of a hundred patients, one of their resources
			second = append(second, observed(i, 3, 2))
		}
	}
	before, err := s.src.Snapshot(t.Context(), time.Now())
	must(t, err)
	s.loadWith(ndjson(first...), keep)
	between, err := s.src.Snapshot(t.Context(), time.Now())
	must(t, err)
	s.loadWith(ndjson(second...), keep)
	s.open()
	january := func(day int) time.Time { return time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC) }
	scattered := []string{all[0], all[301], all[people-1]}
	for name, test := range map[string]struct {
		ask    []string
		window source.Window
		by     postgres.Path
		rows   int
	}{
		"few changes":                {all, source.Window{After: between}, postgres.ByChange, people / 20},
		"few changes, by date":       {all, source.Window{Since: january(1)}, postgres.ByChange, people / 20},
		"of scattered patients":      {scattered, source.Window{After: between}, postgres.ByPatient, 1},
		"of scattered, by date":      {scattered, source.Window{Since: january(1)}, postgres.ByPatient, 1},
		"everything changed":         {all, source.Window{After: before}, postgres.ByRange, people * each},
		"everything is later":        {all, source.Window{Since: january(1).Add(-1)}, postgres.ByRange, people * each},
		"of some, everything is":     {all[:99], source.Window{Since: january(1).Add(-1)}, postgres.ByRange, 99 * each},
		"nothing later":              {all, source.Window{Since: january(2)}, postgres.ByChange, 0},
		"nothing later of scattered": {scattered, source.Window{Since: january(2)}, postgres.ByPatient, 0},
	} {
		q := source.Query{Type: "Observation", Patients: test.ask, AsOf: time.Now(), Window: test.window}
		if by, err := s.src.Choose(t.Context(), q); err != nil || by != test.by {
			t.Errorf("%s: path %v (%v), want %v", name, by, err, test.by)
		}
		for _, by := range []postgres.Path{postgres.ByPatient, postgres.ByRange, postgres.ByChange} {
			rows := 0
			must(t, s.src.ForPatientsBy(t.Context(), by, q, func(source.Resource) error { rows++; return nil }))
			if rows != test.rows {
				t.Errorf("%s: path %v returns %d rows, want %d", name, by, rows, test.rows)
			}
		}
	}
	// Also with statistics from before the second load: to them all rows are of one load.
	for _, statistics := range []string{"", "ANALYZE"} {
		if statistics != "" {
			s.exec(statistics)
		}
		for name, w := range map[string]source.Window{"after": {After: between}, "since": {Since: january(1)}} {
			for _, last := range []string{"", all[people-1]} {
				text, args := postgres.Walk("Observation", time.Now(), w, last, "<=", last)
				plan, err := s.src.Plan(t.Context(), "SELECT r.head, r.body"+text, args)
				must(t, err)
				if !strings.Contains(plan, "resource_observation_window") || strings.Contains(plan, "Memoize") {
					t.Errorf("%s, last %q: the server does not read by the index of changes:\n%s", name, last, plan)
				}
			}
		}
	}
}

// TestWindowOutlivesTrimming: a window needs no version that was trimmed, and deletions are kept longer than versions. Sizes
// has the instant from which on they are complete.
func TestWindowOutlivesTrimming(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	load := func(deletions time.Duration, lines ...string) time.Time {
		t.Helper()
		s.loadWith(ndjson(lines...), postgres.LoadConfig{Parallel: 2, Deletions: deletions})
		at, err := s.src.Snapshot(t.Context(), time.Now())
		must(t, err)
		return at
	}
	patient := func(id, version string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"versionId":%q}}`, id, version)
	}
	const gone = `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/a"}}]}`
	at := load(time.Hour, patient("a", "1"), patient("b", "1"), patient("c", "1"))
	load(time.Hour, gone, patient("b", "2"), patient("d", "1"))
	now := load(time.Hour, patient("b", "3"))
	if n := s.count("SELECT count(*) FROM resource_patient WHERE ended IS NOT NULL"); n != 0 {
		t.Fatalf("%d old versions are left", n)
	}
	ids := func() (changed, deleted, added []string) {
		t.Helper()
		window := source.Window{After: at}
		must(t, s.src.Everything(t.Context(), source.EverythingQuery{Type: "Patient", AsOf: now, Window: window},
			func(r source.Resource) error { changed = append(changed, r.ID); return nil }))
		must(t, s.src.Deleted(t.Context(), source.DeletedQuery{Type: "Patient", AsOf: now, Window: window},
			func(d source.Deletion) error { deleted = append(deleted, d.ID); return nil }))
		must(t, s.src.NewPatients(t.Context(), at, now, func(id string) error { added = append(added, id); return nil }))
		slices.Sort(changed)
		return changed, deleted, added
	}
	sizes := func() time.Time {
		t.Helper()
		sizes, err := s.src.Sizes(t.Context())
		must(t, err)
		return sizes.DeletionsSince
	}
	changed, deleted, added := ids()
	if !slices.Equal(changed, []string{"b", "d"}) || !slices.Equal(deleted, []string{"a"}) || !slices.Equal(added, []string{"d"}) {
		t.Errorf("changed %v, deleted %v, added %v", changed, deleted, added)
	}
	if since := sizes(); !since.IsZero() {
		t.Errorf("deletions since %s, want all", since)
	}
	now = load(0)
	changed, deleted, added = ids()
	if !slices.Equal(changed, []string{"b", "d"}) || len(deleted) > 0 || !slices.Equal(added, []string{"b", "d"}) {
		t.Errorf("without records: changed %v, deleted %v, added %v", changed, deleted, added)
	}
	if since := sizes(); !since.After(at) || since.After(now) {
		t.Errorf("deletions since %s, want it after %s", since, at)
	}
	if err := s.src.Everything(t.Context(), source.EverythingQuery{Type: "Patient", AsOf: at}, func(source.Resource) error {
		return nil
	}); err == nil {
		t.Error("read as of an instant of which versions were trimmed")
	}
}
