package postgres_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

func TestChoose(t *testing.T) {
	for _, test := range []struct {
		asked, within int64
		perPatient    float64
		scan          bool
	}{
		{512, 512, 180, true},  // everybody in the range
		{512, 520, 180, true},  // all but a few
		{512, 600, 180, false}, // many rows of others
		{512, 1_000_000, 1, false},
		{100, 1_000_000, 180, false},
		{1, 1, 1e6, true},
		{512, 2559, 1, true}, // the crossover: four rows of others cost a lookup
		{512, 2560, 1, false},
		{512, 2561, 1, false},
	} {
		if got := postgres.Choose(test.asked, test.within, test.perPatient) == postgres.Scan; got != test.scan {
			t.Errorf("%d of %d with %g rows each: scan %v, want %v", test.asked, test.within, test.perPatient, got, test.scan)
		}
	}
}

// TestPaths reads sets of patients, neighbouring and spread: both paths return the same, and pathFor chooses a scan for
// neighbours and lookups for spread patients.
func TestPaths(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const people = 600
	var lines, all []string
	for i := range people {
		id := fmt.Sprintf("p%04d", i)
		all = append(all, id)
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, id))
		for j := range 8 {
			lines = append(lines, observation(fmt.Sprintf("%s-%d", id, j), id, 1))
		}
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Appointment","id":%q,"participant":[`+
			`{"actor":{"reference":"Patient/%s"}},{"actor":{"reference":"Patient/p%04d"}}]}`, id, id, (i*7)%people))
	}
	s.load(ndjson(lines...))
	every := func(n int) (ids []string) {
		for i := 0; i < people; i += n {
			ids = append(ids, all[i])
		}
		return ids
	}
	for name, test := range map[string]struct {
		ask          []string
		observations any // path
	}{
		"all":             {all, postgres.Scan},
		"one":             {all[17:18], postgres.Scan},
		"neighbours":      {all[100:200], postgres.Scan},
		"all but one":     {slices.Concat(all[:300], all[301:]), postgres.Scan},
		"every second":    {every(2), postgres.Lookups}, // eight rows of others for each lookup
		"every hundredth": {every(100), postgres.Lookups},
		"first and last":  {[]string{all[0], all[people-1]}, postgres.Lookups},
	} {
		for _, typ := range []string{"Observation", "Appointment", "Patient"} {
			q := source.Query{Type: typ, Patients: test.ask, AsOf: time.Now()}
			got := map[string]string{}
			for by, path := range map[string]any{"scan": postgres.Scan, "lookups": postgres.Lookups} {
				var ids []string
				take := func(r source.Resource) error {
					ids = append(ids, r.ID+" "+strings.Join(r.Subjects, "+"))
					return nil
				}
				var err error
				if path == any(postgres.Scan) {
					err = s.src.ForPatientsBy(t.Context(), postgres.Scan, q, take)
				} else {
					err = s.src.ForPatientsBy(t.Context(), postgres.Lookups, q, take)
				}
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(ids)
				got[by] = strings.Join(ids, "\n")
			}
			if len(slices.Compact(slices.Collect(maps.Values(got)))) != 1 || got["scan"] == "" {
				t.Errorf("%s of %s: the paths give %d and %d bytes of ids", typ, name, len(got["scan"]), len(got["lookups"]))
			}
			if typ != "Observation" {
				continue
			}
			if chosen, err := s.src.PathFor(t.Context(), q); err != nil || any(chosen) != test.observations {
				t.Errorf("%s: path %v (%v), want %v", name, chosen, err, test.observations)
			}
		}
	}
}
