package maintenance

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

const (
	activePage  = 200
	rescueBatch = 200
	// settling is how long an index entry may differ from the record: the two are written one after the other.
	settling = time.Minute
	// abandoned is how long an entry may be without a record: a kick-off enters it before it creates the job.
	abandoned = 10 * time.Minute
)

// Rescue looks at every active job: units that have been silent are enqueued again, under a new fence if they had a
// worker; waiting units that nobody issued are issued; jobs that take too long fail; and entries that should not be
// there any more go.
func (u *Upkeep) Rescue(ctx context.Context) error {
	var errs []error
	for offset := 0; ; {
		page, err := u.Jobs.Active(ctx, offset, activePage)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, entry := range page {
			if err := u.rescueOne(ctx, entry); err != nil && !gone(err) {
				errs = append(errs, err)
			}
		}
		// Entries that left the index meanwhile move others forward; those are seen at the next tick.
		if offset += activePage; len(page) < activePage {
			return errors.Join(errs...)
		}
	}
}

func (u *Upkeep) rescueOne(ctx context.Context, entry jobstore.Entry) error {
	now := u.Now()
	settled := now.Sub(entry.At) > settling
	job, err := u.Jobs.Job(ctx, entry.ID)
	log := u.about(entry.ID, job)
	switch {
	case errors.Is(err, export.ErrNotFound):
		if now.Sub(entry.At) > abandoned {
			return u.Jobs.Leave(ctx, entry.ID)
		}
		return nil
	case err != nil:
		return err
	case !job.State.Live():
		if !settled {
			return nil
		}
		if job.State == export.Completed || job.State == export.Failed {
			return u.Jobs.SetDue(ctx, job.ID, job.Expires)
		}
		return u.Jobs.SetDue(ctx, job.ID, now)
	case now.Sub(job.Created) > u.cfg.MaxAge:
		log.Error("job took too long", "state", job.State)
		err := u.Jobs.Fail(ctx, job.ID, "The export took too long and was given up.", now, now.Add(u.cfg.Retention))
		if err == nil {
			u.metrics.failed.Inc()
		}
		return err
	}

	// First what may fail without having changed anything: a silent unit that is found counts as heard of again.
	most, err := u.Queue.Outstanding(ctx, u.cfg.Outstanding)
	if err != nil {
		return err
	}
	silent, err := u.Jobs.Silent(ctx, job.ID, u.cfg.Silence, rescueBatch)
	if err != nil {
		return err
	}
	issued, err := u.Jobs.Issue(ctx, job.ID, most)
	if err != nil {
		return err
	}
	var errs []error
	for _, unit := range append(silent, issued...) {
		task := queue.TaskOf(job.ID, unit.Unit, unit.Fence)
		log := log.With("unit", unit.Unit.ID)
		if unit.Lost {
			u.metrics.rescued.Inc()
			log.Warn("unit lost its worker", "fence", unit.Fence, "attempt", unit.Attempts)
			task.Trace = u.traceRescue(ctx, job, unit)
		}
		errs = append(errs, u.enqueue(ctx, log, task))
	}
	return errors.Join(errs...)
}

// traceRescue leaves a span in the job's trace that tells of a lost worker, and returns its traceparent.
func (u *Upkeep) traceRescue(ctx context.Context, job export.Job, unit jobstore.Issued) string {
	ctx, span := u.Tracing.Join(ctx, job.Trace, "rescue", trace.WithAttributes(
		attribute.String("sluice.job_id", string(job.ID)), attribute.String("sluice.unit", string(unit.Unit.ID)),
		attribute.Int64("sluice.fence", unit.Fence), attribute.Int("sluice.attempt", unit.Attempts),
	))
	defer span.End()
	return telemetry.TraceParent(ctx)
}

// enqueue sees to it that the unit has a task in the queue. A task that was taken from the queue and has not claimed its
// unit in all this time belongs to a process that died in between, or waits long to be delivered again: the unit gets a
// new fence and a new task, and the old one finds its fence stale.
func (u *Upkeep) enqueue(ctx context.Context, log *slog.Logger, task queue.Task) error {
	err := u.Queue.EnqueueUnit(ctx, task)
	if !errors.Is(err, queue.ErrTaken) {
		return err
	}
	fence, err := u.Jobs.Refence(ctx, task.Job, task.Unit, task.Fence)
	if gone(err) {
		return nil // it has been claimed in this moment
	}
	if err != nil {
		return err
	}
	u.metrics.rescued.Inc()
	log.Warn("unit was taken and never begun", "fence", fence)
	task.Fence = fence
	return u.Queue.EnqueueUnit(ctx, task)
}
