package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// TestALongUnitGivesWayToShortOnes: it rests three times as long as it has worked, at most 5 ms, and only while others
// are under way.
func TestALongUnitGivesWayToShortOnes(t *testing.T) { // PITFALLS 25
	for name, row := range map[string]struct {
		others *shorts
		works  time.Duration
		rests  time.Duration
	}{
		"a short unit is under way": {underWay("other"), time.Millisecond, 3 * time.Millisecond},
		"several are":               {underWay("own", "other", "a third"), time.Millisecond, 3 * time.Millisecond},
		"it took long itself":       {underWay("other"), time.Second, 5 * time.Millisecond},
		"only of its own job":       {underWay("own", "own"), time.Millisecond, 0},
		"none is":                   {underWay(), time.Millisecond, 0},
		"it is short itself":        {nil, time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := courtesy{shorts: row.others, job: "own"}
				c.wrote(courtesyBytes) // from here on it is known how long it works
				for range 10 {
					began := time.Now()
					c.wrote(courtesyBytes / 2)
					time.Sleep(row.works)
					c.wrote(courtesyBytes / 2)
					if rested := time.Since(began) - row.works; rested != row.rests {
						t.Fatalf("rested for %s, want %s", rested, row.rests)
					}
				}
			})
		})
	}
}

// underWay returns a count of short units of the jobs, and of some that have ended.
func underWay(jobs ...export.JobID) *shorts {
	s := new(shorts)
	s.begin("other")()
	for _, job := range jobs {
		s.begin(job)
	}
	return s
}
