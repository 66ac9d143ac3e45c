package maintenance

import (
	"context"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Expire marks finished jobs whose retention is over as expired and queues the purge of all ended jobs that are due.
func (r *Runner) Expire(ctx context.Context) error { return r.expire(ctx, false) }

// makeRoom is Expire for a full Redis: it purges the jobs itself.
func (r *Runner) makeRoom(ctx context.Context) error { return r.expire(ctx, true) }

func (r *Runner) expire(ctx context.Context, inline bool) error {
	expired, err := r.lifecycle.ExpireDue(ctx, inline)
	for _, job := range expired {
		r.metrics.expired.Inc()
		r.jobLogger(job.ID, job).Info("job expired")
	}
	return err
}

// Purge deletes everything of an ended job.
func (r *Runner) Purge(ctx context.Context, id export.JobID) error {
	purged, err := r.lifecycle.Purge(ctx, id)
	if purged {
		r.metrics.purged.Inc()
		r.Logger.Info("job purged", "job_id", id)
	}
	return err
}
