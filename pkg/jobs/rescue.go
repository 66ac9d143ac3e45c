package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// rescueBatch is how many stale units of a job one rescue takes.
const rescueBatch = 200

// Rescued counts what a rescue found.
type Rescued struct {
	Lost     []export.Lease // units that had lost their worker, at their new fences
	Refenced []export.Lease // units whose task left the queue and never claimed them
}

// Rescue enqueues units of a live job that have been silent, under a new fence if they had a worker, and issues waiting
// ones. What it found is in the result also when it returns an error. trace, if not nil, returns the traceparent under
// which a lost unit is enqueued.
func (l *Lifecycle) Rescue(
	ctx context.Context, id export.JobID, silence time.Duration, trace func(context.Context, export.Lease) string,
) (rescued Rescued, err error) {
	// First what may fail without a change: a stale unit that was taken counts as heard of.
	most, err := l.Queue.Outstanding(ctx, l.Outstanding)
	if err != nil {
		return rescued, err
	}
	lost, unclaimed, err := l.Store.RescueStale(ctx, id, silence, rescueBatch)
	if err != nil {
		return rescued, err
	}
	rescued.Lost = lost
	issued, err := l.Store.Issue(ctx, id, most)
	errs := []error{err}
	for _, lease := range lost {
		task := queue.TaskOf(lease)
		if trace != nil {
			task.Trace = trace(ctx, lease)
		}
		errs = append(errs, l.enqueue(ctx, task))
	}
	for _, lease := range append(unclaimed, issued...) {
		refenced, err := l.requeue(ctx, lease)
		if refenced.Fence != 0 {
			rescued.Refenced = append(rescued.Refenced, refenced)
		}
		errs = append(errs, err)
	}
	return rescued, errors.Join(errs...)
}

// requeue makes sure that an unclaimed unit has a task in the queue. A task that was taken and has not claimed its unit in
// all this time belongs to a process that died in between, or waits for a retry: the unit gets a new fence and a new
// task, which requeue returns as a lease, and the old task finds its fence stale.
func (l *Lifecycle) requeue(ctx context.Context, lease export.Lease) (refenced export.Lease, err error) {
	err = l.Queue.EnqueueUnit(ctx, queue.TaskOf(lease))
	if !errors.Is(err, queue.ErrTaken) {
		return export.Lease{}, err
	}
	fence, err := l.Store.Refence(ctx, lease.Job, lease.Unit.ID, lease.Fence)
	if Gone(err) {
		return export.Lease{}, nil // it was claimed meanwhile
	}
	if err != nil {
		return export.Lease{}, err
	}
	lease.Fence = fence
	return lease, l.Queue.EnqueueUnit(ctx, queue.TaskOf(lease))
}
