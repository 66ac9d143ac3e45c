package main

import (
	"fmt"
	"slices"
	"time"
)

// report prints what was measured. The error tells that something was violated.
func (e *events) report(recovered []recovery) error {
	byName := map[string][]time.Duration{}
	var kinds []string
	for _, r := range recovered {
		if byName[r.what] == nil {
			kinds = append(kinds, r.what)
		}
		byName[r.what] = append(byName[r.what], r.took)
	}
	slices.Sort(kinds)
	if len(kinds) > 0 {
		_, _ = fmt.Fprintf(e.out, "\n%-22s %5s %10s %10s\n", "fault", "times", "median s", "worst s")
	}
	for _, name := range kinds {
		all := byName[name]
		slices.Sort(all)
		median, worst := all[len(all)/2].Seconds(), all[len(all)-1].Seconds()
		_, _ = fmt.Fprintf(e.out, "%-22s %5d %10.1f %10.1f\n", name, len(all), median, worst)
	}
	_, _ = fmt.Fprintf(e.out, "\nvisits: %s\n", counts(e.visits))
	if len(e.violations) > 0 {
		return fmt.Errorf("%d violations, the first: %s", len(e.violations), e.violations[0])
	}
	_, _ = fmt.Fprintln(e.out, "no violation")
	return nil
}
