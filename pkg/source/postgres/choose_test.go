package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

func TestScans(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		asked, within int64
		perPatient    float64
		scan          bool
	}{
		{512, 512, 180, true},  // every patient in the range
		{512, 520, 180, true},  // all but a few
		{512, 600, 180, false}, // many rows of others
		{512, 1_000_000, 1, false},
		{100, 1_000_000, 180, false},
		{1, 1, 1e6, true},
		{512, 2559, 1, true}, // the crossover: four rows of others cost a lookup
		{512, 2560, 1, false},
		{512, 2561, 1, false},
	} {
		if got := postgres.Scans(test.asked, test.within, test.perPatient); got != test.scan {
			t.Errorf("%d of %d with %g rows each: scan %v, want %v", test.asked, test.within, test.perPatient, got, test.scan)
		}
	}
}

// TestPaths reads adjacent and scattered patients: both paths return the same, and a scan is chosen for adjacent
// patients, lookups for scattered ones.
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
		ask []string
		by  postgres.Path // of observations
	}{
		"all":             {all, postgres.ByRange},
		"one":             {all[17:18], postgres.ByRange},
		"neighbours":      {all[100:200], postgres.ByRange},
		"all but one":     {slices.Concat(all[:300], all[301:]), postgres.ByRange},
		"every second":    {every(2), postgres.ByPatient}, // eight rows of others for each lookup
		"every hundredth": {every(100), postgres.ByPatient},
		"first and last":  {[]string{all[0], all[people-1]}, postgres.ByPatient},
	} {
		for _, typ := range []string{"Observation", "Appointment", "Patient"} {
			q := source.Query{Type: typ, Patients: test.ask, AsOf: time.Now()}
			got := map[postgres.Path]string{}
			for _, by := range []postgres.Path{postgres.ByPatient, postgres.ByRange} {
				var ids []string
				err := s.src.ForPatientsBy(t.Context(), by, q, func(r source.Resource) error {
					ids = append(ids, r.ID+" "+strings.Join(r.Subjects, "+"))
					return nil
				})
				must(t, err)
				slices.Sort(ids)
				got[by] = strings.Join(ids, "\n")
			}
			patients, ranges := got[postgres.ByPatient], got[postgres.ByRange]
			if patients != ranges || patients == "" {
				t.Errorf("%s of %s: the paths give %d and %d bytes of ids", typ, name, len(patients), len(ranges))
			}
			if typ != "Observation" {
				continue
			}
			if by, err := s.src.Choose(t.Context(), q); err != nil || by != test.by {
				t.Errorf("%s: path %v (%v), want %v", name, by, err, test.by)
			}
		}
	}
}
