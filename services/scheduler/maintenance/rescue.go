package maintenance

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

const (
	activePage = 200
	// refileAfter is how long an index entry may differ from its record: the previous release writes one after the other.
	refileAfter = time.Minute
	// unconfirmedAfter is longer than a kick-off may take.
	unconfirmedAfter = time.Minute
)

// Rescue enqueues stale and waiting units of every live job and fails jobs that take too long.
func (r *Runner) Rescue(ctx context.Context) error {
	now, err := r.lifecycle.Clock(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for offset := 0; ; offset += activePage {
		// A job that ends meanwhile moves later ones forward; the next pass sees those.
		page, err := r.Jobs.Active(ctx, offset, activePage)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, entry := range page {
			if err := r.rescueOne(ctx, now, entry); err != nil && !jobs.Gone(err) {
				errs = append(errs, err)
			}
		}
		if len(page) < activePage {
			return errors.Join(errs...)
		}
	}
}

// rescueOne rescues the job of an entry, whose time is that of Redis, at the instant now.
func (r *Runner) rescueOne(ctx context.Context, now time.Time, entry jobstore.Entry) error {
	job, err := r.Jobs.Job(ctx, entry.ID)
	log := r.jobLogger(entry.ID, job)
	switch {
	case err != nil && !errors.Is(err, export.ErrNotFound):
		return err
	case err != nil || !job.State.Live():
		if now.Sub(entry.At) > refileAfter {
			return r.Jobs.Refile(ctx, entry.ID, now)
		}
		return nil
	case job.Unconfirmed && job.State == export.Scheduled:
		if now.Sub(entry.At) < unconfirmedAfter {
			return nil
		}
		log.Warn("a kick-off that failed is removed")
		return r.Jobs.RemoveUnconfirmed(ctx, job.ID)
	case now.Sub(entry.At) > r.cfg.MaxAge:
		log.Error("job took too long", "state", job.State)
		err := r.lifecycle.FailJob(ctx, job.ID, "The export took too long and was given up.")
		if err == nil {
			r.metrics.failed.Inc()
		}
		return err
	}
	rescued, err := r.lifecycle.Rescue(ctx, job.ID, r.cfg.Silence, func(ctx context.Context, lease export.Lease) string {
		return r.traceRescue(ctx, job, lease)
	})
	r.metrics.rescued.Add(float64(len(rescued.Lost) + len(rescued.Refenced)))
	for _, lease := range rescued.Lost {
		log.Warn("unit lost its worker", "unit", lease.Unit.ID, "fence", lease.Fence, "attempt", lease.Failures)
	}
	for _, lease := range rescued.Refenced {
		log.Warn("unit was taken from the queue and never claimed", "unit", lease.Unit.ID, "fence", lease.Fence)
	}
	return err
}

// traceRescue adds a span for a lost unit to the job's trace and returns its traceparent.
func (r *Runner) traceRescue(ctx context.Context, job export.Job, lease export.Lease) string {
	ctx, span := r.Tracing.Join(ctx, job.Trace, "rescue", trace.WithAttributes(
		attribute.String("sluice.job_id", string(job.ID)), attribute.String("sluice.unit", string(lease.Unit.ID)),
		attribute.Int64("sluice.fence", lease.Fence), attribute.Int("sluice.attempt", lease.Failures),
	))
	defer span.End()
	return telemetry.TraceParent(ctx)
}
