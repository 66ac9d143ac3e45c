package pipeline

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestALongUnitGivesWayToShortOnes: it rests three times as long as it has worked, at most 5 ms, and only while others
// are under way.
func TestALongUnitGivesWayToShortOnes(t *testing.T) { // PITFALLS 25
	for name, row := range map[string]struct {
		others *atomic.Int64
		works  time.Duration
		rests  time.Duration
	}{
		"a short unit is under way": {counter(1), time.Millisecond, 3 * time.Millisecond},
		"several are":               {counter(7), time.Millisecond, 3 * time.Millisecond},
		"it took long itself":       {counter(1), time.Second, 5 * time.Millisecond},
		"none is":                   {counter(0), time.Millisecond, 0},
		"it is short itself":        {nil, time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := courtesy{others: row.others}
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

func counter(n int64) *atomic.Int64 {
	c := new(atomic.Int64)
	c.Store(n)
	return c
}
