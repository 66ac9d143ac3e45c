package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// A long unit pauses three times as long as it has worked, at most 5 ms, and only while short units of other jobs run.
func TestALongUnitGivesWayToShortOnes(t *testing.T) { // pitfall 25
	t.Parallel()
	for name, row := range map[string]struct {
		others *activeShortUnits
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
				c := throttle{active: row.others, job: "own"}
				c.wrote(throttleInterval) // starts the measurement
				for range 10 {
					began := time.Now()
					c.wrote(throttleInterval / 2)
					time.Sleep(row.works)
					c.wrote(throttleInterval / 2)
					if rested := time.Since(began) - row.works; rested != row.rests {
						t.Fatalf("rested for %s, want %s", rested, row.rests)
					}
				}
			})
		})
	}
}

// underWay returns a counter of running short units of the jobs; others have ended.
func underWay(jobs ...export.JobID) *activeShortUnits {
	s := new(activeShortUnits)
	s.begin("other")()
	for _, job := range jobs {
		s.begin(job)
	}
	return s
}

// TestAQueryAsksForBytes: a query covers many patients if their data is small, and few if it is large.
func TestAQueryAsksForBytes(t *testing.T) { // pitfall 6
	t.Parallel()
	for name, row := range map[string]struct {
		bytes  int64
		chunks int
		want   int
	}{
		"nothing known":        {0, 100, queryChunks},
		"little":               {1 << 20, 100, queryChunks},
		"just one query":       {queryBytes, 10, 10},
		"a quarter each":       {4 * queryBytes, 8, 2},
		"more than one chunk":  {100 * queryBytes, 10, 1},
		"a terabyte":           {1 << 40, 20_000, 1},
		"little of very many":  {queryBytes, 100_000, queryChunks},
		"one chunk of a light": {1, 1, 1},
	} {
		got := chunksAtOnce(export.Unit{Bytes: row.bytes, Slice: export.Slice{From: 7, To: 7 + row.chunks}})
		if min(got, row.chunks) != row.want {
			t.Errorf("%s: %d chunks, want %d", name, got, row.want)
		}
	}
}
