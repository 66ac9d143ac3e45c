package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// Cancel hides a job from its owner at once, finished or not, and queues its purge (spec 5). It is idempotent. ErrNotFound
// when there is no such job; ErrConflict when it has expired. An error of the queue is not returned: the expire pass
// purges the job in any case.
func (l *Lifecycle) Cancel(ctx context.Context, id export.JobID) (queueErr, err error) {
	if err := l.Store.Cancel(ctx, id, l.Now()); err != nil {
		return nil, err
	}
	return l.Queue.EnqueuePurge(ctx, id), nil
}

// FailJob ends a live job with a reason for its owner, and queues the deletion of its files.
func (l *Lifecycle) FailJob(ctx context.Context, id export.JobID, reason string) error {
	now, err := l.Store.Time(ctx)
	if err != nil {
		return err
	}
	if err := l.Store.FailJob(ctx, id, reason, now, now.Add(l.Retention)); err != nil {
		return err
	}
	return l.Queue.EnqueueLatePurge(ctx, id)
}

// FailJobFrom is FailJob by the holder of a lease on the plan or the seal. failed is false when the job has ended in
// another way meanwhile.
func (l *Lifecycle) FailJobFrom(ctx context.Context, lease export.Lease, reason string) (failed bool, err error) {
	now, err := l.Store.Time(ctx)
	if err != nil {
		return false, err
	}
	err = l.Store.FailJobFrom(ctx, lease, reason, now, now.Add(l.Retention))
	if err != nil && !errors.Is(err, export.ErrConflict) {
		return false, err
	}
	return err == nil, l.Queue.EnqueueLatePurge(ctx, lease.Job)
}

// ExpireNow expires a finished job early and queues its purge; for a cancelled or expired one it queues the
// purge once more. ErrNotFound when there is no such job; ErrConflict when it is live.
func (l *Lifecycle) ExpireNow(ctx context.Context, id export.JobID) error {
	job, err := l.Store.Job(ctx, id)
	if err != nil {
		return err
	}
	if job.State.Live() {
		return fmt.Errorf("expire job %s: %w: it is live; cancel it", id, export.ErrConflict)
	}
	err = l.Store.Expire(ctx, id, l.Now())
	if errors.Is(err, export.ErrNotFound) {
		return nil // purged meanwhile
	}
	if err != nil && !errors.Is(err, export.ErrConflict) { // cancelled
		return err
	}
	return l.Queue.EnqueuePurge(ctx, id)
}

// PurgeLate queues another purge of an ended job for a unit that was still writing when the job ended
// (spec 5, pitfall 16).
func (l *Lifecycle) PurgeLate(ctx context.Context, id export.JobID) error {
	return l.Queue.EnqueueLatePurge(ctx, id)
}

// dueBatch is how many due jobs are read at once.
const dueBatch = 100

// ExpireDue marks finished jobs whose retention is over as expired and queues the purge of every ended job that is due. It
// returns the jobs that it expired. An error of one job does not stop the others. With inline it purges the jobs itself: a
// full Redis runs no tasks, and only purges make room.
func (l *Lifecycle) ExpireDue(ctx context.Context, inline bool) (expired []export.Job, err error) {
	purge := l.Queue.EnqueuePurge
	if inline {
		purge = func(ctx context.Context, id export.JobID) error { _, err := l.Purge(ctx, id); return err }
	}
	now, err := l.Clock(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for offset := 0; ; offset += dueBatch {
		due, err := l.Store.Due(ctx, now, offset, dueBatch)
		if err != nil {
			return expired, errors.Join(append(errs, err)...)
		}
		for _, entry := range due {
			job, err := l.expireOne(ctx, now, entry, purge)
			if err != nil {
				errs = append(errs, err)
			} else if job != nil {
				expired = append(expired, *job)
			}
		}
		if len(due) < dueBatch {
			return expired, errors.Join(errs...)
		}
	}
}

// expireOne returns the job if this call expired it.
func (l *Lifecycle) expireOne(
	ctx context.Context, now time.Time, entry jobstore.Entry, purge func(context.Context, export.JobID) error,
) (*export.Job, error) {
	id := entry.ID
	job, err := l.Store.Job(ctx, id)
	switch {
	case errors.Is(err, export.ErrNotFound), job.State == export.Cancelled, job.State == export.Expired:
		return nil, purge(ctx, id)
	case err != nil:
		return nil, err
	case job.State.Live():
		return nil, fmt.Errorf("job %s is due but %s", id, job.State)
	case job.Visible(now):
		return nil, l.Store.Refile(ctx, id, now)
	}
	if err := l.record(audit.Expire, id); err != nil {
		return nil, err
	}
	if err := l.Store.Expire(ctx, id, entry.At); err != nil { // keeps its place in the index that is being read
		if Gone(err) {
			return nil, nil
		}
		return nil, err
	}
	return &job, purge(ctx, id)
}

// Purge deletes the objects and then the record of a job that its owner can no longer see. After a kill, the expire pass
// finds the record or the index entry and enqueues the purge again. A failed job loses its files but keeps its record
// with the reason. Any other job is left alone, and so are the objects of a job that Redis does not know and that was not
// removed: a Redis that was emptied may be restored. purged is true if the record was removed.
func (l *Lifecycle) Purge(ctx context.Context, id export.JobID) (purged bool, err error) {
	job, err := l.Store.Job(ctx, id)
	switch {
	case errors.Is(err, export.ErrNotFound):
		if removed, err := l.Store.Removed(ctx, id); err != nil || !removed {
			return false, err
		}
	case err != nil:
		return false, err
	case job.State == export.Failed && job.Visible(l.Now()):
		if err := l.record(audit.Purge, id); err != nil {
			return false, err
		}
		_, err := l.Objects.DeletePrefix(ctx, export.JobPrefix(id))
		return false, err
	case job.State != export.Cancelled && job.State != export.Expired:
		return false, nil
	}
	for _, step := range l.purgeSteps(id) {
		if err := step(ctx); err != nil {
			return false, fmt.Errorf("purge job %s: %w", id, err)
		}
	}
	return true, nil
}

// errNotEmpty: a worker that has not yet learned that its job ended wrote an object during the deletion.
var errNotEmpty = errors.New("objects are left under the job's prefix")

// purgeSteps are the steps of a purge, in order. Each is idempotent.
func (l *Lifecycle) purgeSteps(id export.JobID) []func(context.Context) error {
	prefix := export.JobPrefix(id)
	return []func(context.Context) error{
		func(context.Context) error { return l.record(audit.Purge, id) },
		func(ctx context.Context) error { // objects and unfinished uploads
			_, err := l.Objects.DeletePrefix(ctx, prefix)
			return err
		},
		func(ctx context.Context) error { // the prefix must be empty before the record is removed
			return l.Objects.List(ctx, prefix, func(objects.Info) error { return errNotEmpty })
		},
		func(ctx context.Context) error { return l.Store.Remove(ctx, id) },
	}
}

// record records a step in the audit log before it is taken. If that fails, the step is not taken; the next pass retries.
func (l *Lifecycle) record(action audit.Action, id export.JobID) error {
	return l.Audit.Record(audit.Event{Action: action, Outcome: audit.Success, Job: id})
}
