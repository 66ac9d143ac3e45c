package maintenance

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// Sweep deletes orphaned objects and unfinished uploads: those of jobs without a record and, of ended jobs, those of lost
// attempts and those that were needed only while the job ran. It leaves everything younger than the grace and everything
// of live jobs.
func (r *Runner) Sweep(ctx context.Context) error {
	before := r.Now().Add(-r.cfg.SweepGrace)
	var errs []error
	err := r.Objects.Prefixes(ctx, export.JobsPrefix, func(prefix string) error {
		id, ours := jobOf(prefix)
		if !ours {
			r.Logger.Warn("the bucket has a foreign prefix, which is left alone")
			return nil
		}
		// An error of one job does not stop the sweep of the others.
		errs = append(errs, r.sweepJob(ctx, id, before))
		return nil
	})
	errs = append(errs, err)
	errs = append(errs, r.Objects.Uploads(ctx, func(upload objects.Upload) error {
		orphan, err := r.orphan(ctx, upload.Key, upload.Started, before)
		if err == nil && orphan {
			err = r.Objects.AbortUpload(ctx, upload.Key, upload.ID)
			r.metrics.aborted.Inc()
		}
		if err != nil {
			errs = append(errs, err)
		}
		return nil
	}))
	return errors.Join(errs...)
}

// jobOf returns the job of a prefix.
func jobOf(prefix string) (export.JobID, bool) {
	id, err := export.ParseJobID(strings.TrimSuffix(strings.TrimPrefix(prefix, export.JobsPrefix), "/"))
	return id, err == nil
}

func (r *Runner) sweepJob(ctx context.Context, id export.JobID, before time.Time) error {
	return r.Objects.List(ctx, export.JobPrefix(id), func(object objects.Info) error {
		orphan, err := r.orphan(ctx, object.Key, object.Modified, before)
		if err != nil || !orphan {
			return err
		}
		r.metrics.orphans.Inc()
		r.Logger.Info("orphaned object deleted", "job_id", id)
		return r.Objects.Delete(ctx, object.Key)
	})
}

// orphan reports whether nothing owns the object of that key. Keys outside of the layout are left alone.
func (r *Runner) orphan(ctx context.Context, key string, modified, before time.Time) (bool, error) {
	if modified.After(before) {
		return false, nil
	}
	origin, ours := export.ParseKey(key)
	if !ours {
		return false, nil
	}
	job, err := r.Jobs.Job(ctx, origin.Job)
	switch {
	case errors.Is(err, export.ErrNotFound):
		return true, nil
	case err != nil:
		return false, err
	case job.State.Live():
		return false, nil
	case origin.Scaffolding:
		return true, nil
	}
	current, err := r.Jobs.IsCurrentFence(ctx, origin.Job, origin.Unit, origin.Fence)
	return !current, err
}
