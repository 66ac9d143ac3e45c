package maintenance

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// Sweep deletes objects and unfinished uploads that belong to nothing: of jobs without a record, and of ended jobs
// what a lost attempt left or what was needed only while the job ran. Nothing younger than the grace is touched, and
// nothing of a job that still runs.
func (u *Upkeep) Sweep(ctx context.Context) error {
	before := u.Now().Add(-u.cfg.SweepGrace)
	var errs []error
	err := u.Objects.Prefixes(ctx, export.JobsPrefix, func(prefix string) error {
		id, ours := jobOf(prefix)
		if !ours {
			u.Logger.Warn("a prefix in the bucket is not ours and is left alone")
			return nil
		}
		// One job's trouble does not keep the others from being swept.
		errs = append(errs, u.sweepJob(ctx, id, before))
		return nil
	})
	errs = append(errs, err)
	errs = append(errs, u.Objects.Uploads(ctx, func(upload objects.Upload) error {
		orphan, err := u.orphan(ctx, upload.Key, upload.Started, before)
		if err == nil && orphan {
			err = u.Objects.AbortUpload(ctx, upload.Key, upload.ID)
			u.metrics.aborted.Inc()
		}
		if err != nil {
			errs = append(errs, err)
		}
		return nil
	}))
	return errors.Join(errs...)
}

// jobOf returns the job whose prefix it is.
func jobOf(prefix string) (export.JobID, bool) {
	id, err := export.ParseJobID(strings.TrimSuffix(strings.TrimPrefix(prefix, export.JobsPrefix), "/"))
	return id, err == nil
}

func (u *Upkeep) sweepJob(ctx context.Context, id export.JobID, before time.Time) error {
	return u.Objects.List(ctx, export.JobPrefix(id), func(object objects.Info) error {
		orphan, err := u.orphan(ctx, object.Key, object.Modified, before)
		if err != nil || !orphan {
			return err
		}
		u.metrics.orphans.Inc()
		u.Logger.Info("orphaned object deleted", "job_id", id)
		return u.Objects.Delete(ctx, object.Key)
	})
}

// orphan reports whether the object of that key belongs to nothing. Keys that are not of our layout are nobody's to
// judge unless they lie under a job.
func (u *Upkeep) orphan(ctx context.Context, key string, modified, before time.Time) (bool, error) {
	if modified.After(before) {
		return false, nil
	}
	origin, ours := export.ParseKey(key)
	if !ours {
		return false, nil
	}
	job, err := u.Jobs.Job(ctx, origin.Job)
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
	holds, err := u.Jobs.Holds(ctx, origin.Job, origin.Unit, origin.Fence)
	return !holds, err
}
