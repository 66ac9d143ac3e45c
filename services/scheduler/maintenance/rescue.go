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
)

// Rescue enqueues stale and waiting units of every live job and fails jobs that take too long.
func (r *Runner) Rescue(ctx context.Context) error {
	var errs []error
	for offset := 0; ; offset += activePage {
		// A job that ends meanwhile moves later ones forward; the next pass sees those.
		page, err := r.Jobs.Active(ctx, offset, activePage)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, entry := range page {
			if err := r.rescueOne(ctx, entry); err != nil && !jobs.Gone(err) {
				errs = append(errs, err)
			}
		}
		if len(page) < activePage {
			return errors.Join(errs...)
		}
	}
}

func (r *Runner) rescueOne(ctx context.Context, entry jobstore.Entry) error {
	now := r.Now()
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
	case now.Sub(job.Created) > r.cfg.MaxAge:
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
