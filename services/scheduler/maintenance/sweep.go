package maintenance

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// Sweep deletes orphaned objects and unfinished uploads: everything of jobs without a record and of failed jobs, and, of
// other ended jobs, what no listed unit wrote. It leaves everything younger than the grace and everything of live jobs.
func (r *Runner) Sweep(ctx context.Context) error {
	before := r.Now().Add(-r.cfg.SweepGrace)
	var errs []error
	err := r.Objects.Prefixes(ctx, export.JobsPrefix, func(prefix string) error {
		id, ours := export.JobOf(prefix)
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
		if id, ours := export.JobOf(upload.Key); ours {
			errs = append(errs, r.sweepUpload(ctx, id, upload, before))
		}
		return nil
	}))
	return errors.Join(errs...)
}

func (r *Runner) sweepJob(ctx context.Context, id export.JobID, before time.Time) error {
	state, err := r.stateOf(ctx, id)
	if err != nil || state.Live() {
		return err
	}
	return r.Objects.List(ctx, export.JobPrefix(id), func(object objects.Info) error {
		if object.Modified.After(before) {
			return nil
		}
		orphan, err := r.orphan(ctx, state, object.Key)
		if err != nil || !orphan {
			return err
		}
		r.metrics.orphans.Inc()
		r.Logger.Info("orphaned object deleted", "job_id", id)
		return r.Objects.Delete(ctx, object.Key)
	})
}

func (r *Runner) sweepUpload(ctx context.Context, id export.JobID, upload objects.Upload, before time.Time) error {
	if upload.Started.After(before) {
		return nil
	}
	state, err := r.stateOf(ctx, id)
	if err != nil || state.Live() {
		return err
	}
	orphan, err := r.orphan(ctx, state, upload.Key)
	if err != nil || !orphan {
		return err
	}
	r.metrics.aborted.Inc()
	return r.Objects.AbortUpload(ctx, upload.Key, upload.ID)
}

// stateOf returns the state of a job, or "" if it has no record.
func (r *Runner) stateOf(ctx context.Context, id export.JobID) (export.State, error) {
	job, err := r.Jobs.Job(ctx, id)
	if errors.Is(err, export.ErrNotFound) {
		return "", nil
	}
	return job.State, err
}

// orphan reports whether nothing needs the object of a job that is not live. Keys outside of the layout are left alone.
func (r *Runner) orphan(ctx context.Context, state export.State, key string) (bool, error) {
	origin, ours := export.ParseKey(key)
	switch {
	case !ours:
		return false, nil
	case state == "", state == export.Failed, origin.Scaffolding:
		return true, nil
	}
	published, err := r.Jobs.IsPublished(ctx, origin.Job, origin.Unit, origin.Fence)
	return !published, err
}
