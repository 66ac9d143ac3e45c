package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Issue hands waiting units of the job to the queue, up to the number that may be outstanding. A unit that is not
// enqueued because of an error is enqueued by IssueAgain or, after the silence of a lost worker, by a rescue.
func (l *Lifecycle) Issue(ctx context.Context, id export.JobID) error {
	most, err := l.Queue.Outstanding(ctx, l.Outstanding)
	if err != nil {
		return err
	}
	issued, err := l.Store.Issue(ctx, id, most)
	if errors.Is(err, export.ErrNotLive) {
		return nil
	}
	return errors.Join(l.enqueueAll(ctx, issued), err)
}

// IssueAgain repeats an Issue that has failed. The units that it had issued and not enqueued come first.
func (l *Lifecycle) IssueAgain(ctx context.Context, id export.JobID, failed error) error {
	var unqueued *unqueuedError
	if errors.As(failed, &unqueued) {
		if err := l.enqueueAll(ctx, unqueued.units); err != nil {
			return err
		}
	}
	return l.Issue(ctx, id)
}

// unqueuedError is the error of units that are issued and not in the queue.
type unqueuedError struct {
	units []export.Lease
	error
}

func (e *unqueuedError) Unwrap() error { return e.error }

func (l *Lifecycle) enqueueAll(ctx context.Context, issued []export.Lease) error {
	var unqueued unqueuedError
	for _, lease := range issued {
		if err := l.enqueue(ctx, queue.TaskOf(lease)); err != nil {
			unqueued = unqueuedError{append(unqueued.units, lease), err}
		}
	}
	if unqueued.units == nil {
		return nil
	}
	return &unqueued
}

// Release gives the unit back under a new fence, to run after the delay, and enqueues it.
func (l *Lifecycle) Release(ctx context.Context, lease export.Lease, delay time.Duration, cause export.Cause) error {
	fence, err := l.Store.Release(ctx, lease, delay, cause)
	if err != nil {
		return err
	}
	lease.Fence = fence
	task := queue.TaskOf(lease)
	task.Delay = delay
	return l.enqueue(ctx, task)
}

// RetryUnit runs a unit again at once, under a new fence and with all its attempts, as jobstore.Reopen does.
func (l *Lifecycle) RetryUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	lease, err := l.Store.Reopen(ctx, id, unit)
	if err != nil {
		return err
	}
	return l.enqueue(ctx, queue.TaskOf(lease))
}

// GiveUpUnit closes an open unit as failed: it becomes an entry of the manifest's error list, and the rest of the job
// goes on. The next rescue issues further units. ErrConflict for the plan and the seal, without which there is no
// export, and for a closed unit; ErrNotFound when there is no such unit; ErrNotLive when the job has ended.
func (l *Lifecycle) GiveUpUnit(ctx context.Context, id export.JobID, unit export.UnitID, reason string) error {
	job, err := l.Store.Job(ctx, id)
	if err != nil {
		return err
	}
	found, err := l.Store.Unit(ctx, id, unit)
	if err != nil {
		return err
	}
	if found.Kind == export.KindPlan || found.Kind == export.KindSeal {
		return fmt.Errorf("give up %s of job %s: %w: there is no export without it; cancel the job", unit, id,
			export.ErrConflict)
	}
	return l.Store.GiveUp(ctx, id, unit, reason, job.Request.Next(found.Kind, false))
}

// CloseFailed closes the lease's unit as failed, as GiveUpUnit does for an operator, and issues further units.
func (l *Lifecycle) CloseFailed(ctx context.Context, lease export.Lease, reason string) (issueErr, err error) {
	job, err := l.Store.Job(ctx, lease.Job)
	if err != nil {
		return nil, err
	}
	if lease.Unit.Kind == export.KindResolveReferences {
		// Units that a lost attempt has staged would become visible with the failure. A refusal is left to the commit, which
		// knows a repetition.
		if err := l.Store.Stage(ctx, lease, nil); err != nil && !errors.Is(err, export.ErrFenced) {
			return nil, err
		}
	}
	return l.Commit(ctx, lease, jobstore.Commit{
		Result: export.Result{Failure: reason},
		Next:   job.Request.Next(lease.Unit.Kind, false),
	})
}

// Commit closes the unit with its result and issues further units. issueErr is the error of the latter after a successful
// commit, for IssueAgain.
func (l *Lifecycle) Commit(ctx context.Context, lease export.Lease, commit jobstore.Commit) (issueErr, err error) {
	spanCtx, span := telemetry.StartSpan(ctx, "commit")
	err = l.Store.Commit(spanCtx, lease, commit)
	telemetry.EndSpan(span, err)
	if err != nil {
		return nil, err
	}
	if commit.Seal != nil {
		return nil, nil
	}
	return l.Issue(ctx, lease.Job), nil
}
