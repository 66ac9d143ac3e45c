package ops

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Waits returns in one line why units of a live job wait, or "" if none does. A pause of kick-offs is no reason: it does
// not concern jobs that exist.
func (o *Operator) Waits(ctx context.Context, job Detail) (string, error) {
	count := map[UnitState]int{}
	unavailable := 0
	var next time.Duration // until the first retry
	for _, unit := range job.Units {
		count[unit.State]++
		if unit.State != UnitDelayed {
			continue
		}
		if unit.Cause == export.CauseUnavailable {
			unavailable++
		}
		if until := -unit.Silent.Duration; count[UnitDelayed] == 1 || until < next {
			next = until
		}
	}
	if !job.State.Live() || count[UnitQueued]+count[UnitDelayed]+count[UnitWaiting] == 0 {
		return "", nil
	}
	workers, err := o.Workers(ctx)
	if err != nil {
		return "", err
	}
	slots, busy, others := 0, 0, 0
	for _, worker := range workers {
		if worker.Draining {
			continue
		}
		slots += worker.Slots
		busy += len(worker.Units)
		for _, unit := range worker.Units {
			if unit.Job != job.ID {
				others++
			}
		}
	}
	issued := count[UnitQueued] + count[UnitDelayed] + count[UnitRunning]
	switch {
	case slots == 0:
		return fmt.Sprintf("No worker is running. Open units: %d.", job.Open), nil
	case unavailable > 0:
		return fmt.Sprintf("A dependency of the workers is unavailable. Units that wait for it: %d. The next attempt is in "+
			"%.0f s.", unavailable, next.Seconds()), nil
	case count[UnitQueued] > 0:
		return fmt.Sprintf("Units in the queue: %d. Slots of the workers: %d, busy: %d, with other jobs: %d.",
			count[UnitQueued], slots, busy, others), nil
	case count[UnitDelayed] > 0:
		return fmt.Sprintf("Units that failed and are tried again: %d. The next attempt is in %.0f s.",
			count[UnitDelayed], next.Seconds()), nil
	case issued > 0:
		return fmt.Sprintf("The job has as many units in the queue and running as it may have at once: %d. Further units: %d.",
			issued, count[UnitWaiting]), nil
	default:
		return fmt.Sprintf("A scheduler puts the next units in the queue. Units that wait for it: %d.", count[UnitWaiting]), nil
	}
}
