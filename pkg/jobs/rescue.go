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
	Lost     []export.Lease // units whose worker was lost, at their new fences
	Refenced []export.Lease // units whose task was taken from the queue and did not claim them
}

// Rescue enqueues units of a live job that have been silent, under a new fence if they had a worker, and issues waiting
// ones. The result is valid even with an error. trace, if not nil, returns the traceparent under
// which a lost unit is enqueued.
func (l *Lifecycle) Rescue(
	ctx context.Context, id export.JobID, silence time.Duration, trace func(context.Context, export.Lease) string,
) (rescued Rescued, err error) {
	// This may fail and changes nothing, so it comes first: RescueStale marks the units that it returns as heard of.
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
	unqueued, err := l.unqueued(ctx, append(unclaimed, issued...))
	errs = append(errs, err)
	for _, lease := range unqueued {
		refenced, err := l.requeue(ctx, lease)
		if refenced.Fence != 0 {
			rescued.Refenced = append(rescued.Refenced, refenced)
		}
		errs = append(errs, err)
	}
	return rescued, errors.Join(errs...)
}

// unqueued returns the units that have no task in the queue. Most unclaimed units have one: they wait for a worker.
func (l *Lifecycle) unqueued(ctx context.Context, leases []export.Lease) ([]export.Lease, error) {
	if len(leases) == 0 {
		return nil, nil
	}
	tasks := make([]queue.Task, len(leases))
	for i, lease := range leases {
		tasks[i] = queue.TaskOf(lease)
	}
	queued, err := l.Queue.Queued(ctx, tasks)
	if err != nil {
		return nil, err
	}
	var missing []export.Lease
	for i, lease := range leases {
		if !queued[i] {
			missing = append(missing, lease)
		}
	}
	return missing, nil
}

// requeue makes sure that an unclaimed unit has a task in the queue. If its task was taken but has not claimed the unit for
// so long, the process died in between, or the task waits for a retry. Then the unit gets a new fence and a new task, which
// requeue returns as a lease; the fence of the old task is stale.
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
