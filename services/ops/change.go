package ops

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Ids come from outside, and go into the audit log and into keys.
var (
	unitForm   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)
	workerForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}:[0-9]{1,10}$`)
)

func checkUnit(unit export.UnitID) error {
	if !unitForm.MatchString(string(unit)) {
		return fmt.Errorf("a unit of that id: %w", export.ErrNotFound)
	}
	return nil
}

// RetryUnit has a unit run at once under a new fence, with all its attempts: one that was given up, one whose worker does
// not get on with it, or one that waits to be tried again. What the worker before brings for it counts no more.
// ErrConflict when it is done, waits for its turn, or the stage that builds on it has begun.
func (o *Operator) RetryUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "retry of unit " + string(unit)}, func() error {
		issued, err := o.Jobs.Reopen(ctx, id, unit)
		if err != nil {
			return err
		}
		// Should this fail, a scheduler enqueues the unit when it has been silent for long enough.
		err = o.Queue.EnqueueUnit(ctx, queue.TaskOf(id, issued.Unit, issued.Fence))
		if errors.Is(err, queue.ErrTaken) {
			return nil
		}
		return err
	})
}

// givenUp is what the owner reads in the manifest's error list.
const givenUp = "it was given up by an operator"

// GiveUpUnit gives an open unit up: it becomes an entry of the manifest's error list and the rest of the job goes on.
// Schedulers issue what becomes free by it. ErrConflict for the plan and the seal, without which a job is nothing: cancel
// it; and for a unit that is closed.
func (o *Operator) GiveUpUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "giving up unit " + string(unit)}, func() error {
		job, err := o.Jobs.Job(ctx, id)
		if err != nil {
			return err
		}
		found, err := o.Jobs.Unit(ctx, id, unit)
		if err != nil {
			return err
		}
		if found.Kind == export.KindPlan || found.Kind == export.KindSeal {
			return fmt.Errorf("give up %s of job %s: %w: without it the job is nothing; cancel the job", unit, id,
				export.ErrConflict)
		}
		return o.Jobs.GiveUp(ctx, id, unit, givenUp, job.Request.Next(found.Kind, false))
	})
}

// Cancel ends a job, finished or not, as its owner can: it is gone for its owner at once, and schedulers delete what it
// has. It is idempotent. ErrConflict when it has expired.
func (o *Operator) Cancel(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Cancel, Job: id}, func() error {
		job, err := o.Jobs.Job(ctx, id)
		if err != nil {
			return err
		}
		err = o.Jobs.Cancel(ctx, id, o.Now())
		if errors.Is(err, export.ErrConflict) {
			if again, readErr := o.Jobs.Job(ctx, id); readErr == nil && again.State == export.Cancelled {
				err = nil // done before, by somebody else or by a step whose answer was lost
			}
		}
		if err != nil {
			return err
		}
		return errors.Join(o.Queue.EnqueuePurge(ctx, id), o.Jobs.Withdraw(ctx, job))
	})
}

// PurgeNow has a finished job expire now, before its time: it is gone for its owner at once, and schedulers delete its
// files and then its record. For one that was cancelled or has expired it asks for the purge once more. ErrConflict when
// the job is at work: cancel it, which purges it too.
func (o *Operator) PurgeNow(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Expire, Job: id}, func() error {
		job, err := o.Jobs.Job(ctx, id)
		if err != nil {
			return err
		}
		if job.State.Live() {
			return fmt.Errorf("purge job %s: %w: it is at work; cancel it", id, export.ErrConflict)
		}
		err = o.Jobs.Expire(ctx, id, o.Now())
		if errors.Is(err, export.ErrConflict) { // cancelled or expired, now or before: it is to be purged in any case
			err = nil
		}
		if errors.Is(err, export.ErrNotFound) { // purged in this moment
			return nil
		}
		if err != nil {
			return err
		}
		return o.Queue.EnqueuePurge(ctx, id)
	})
}
