package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// dueBatch is how many due jobs one look at the index brings.
const dueBatch = 100

// ExpireAndPurge marks finished jobs whose retention is over as expired, and purges every job that has ended for its
// owner: expired, cancelled, or without a record.
func (u *Upkeep) ExpireAndPurge(ctx context.Context) error {
	var errs []error
	for {
		due, err := u.Jobs.Due(ctx, u.Now(), dueBatch)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		failed := 0
		for _, entry := range due {
			if err := u.expireOne(ctx, entry); err != nil {
				failed++
				errs = append(errs, err)
			}
		}
		// What failed stays due and would come back at once; the next tick tries again.
		if len(due) < dueBatch || failed > 0 {
			return errors.Join(errs...)
		}
	}
}

func (u *Upkeep) expireOne(ctx context.Context, entry jobstore.Entry) error {
	job, err := u.Jobs.Job(ctx, entry.ID)
	log := u.about(entry.ID, job)
	switch {
	case errors.Is(err, export.ErrNotFound):
		return u.purge(ctx, log, entry.ID) // a purge that was killed after it forgot the job
	case err != nil:
		return err
	case job.State == export.Cancelled || job.State == export.Expired:
		return u.purge(ctx, log, job.ID)
	case job.State.Live():
		// An entry that nothing we know of leaves. A running job is not purged: it is filed anew when it ends.
		return fmt.Errorf("job %s is due but %s", job.ID, job.State)
	case job.Visible(u.Now()):
		return u.Jobs.SetDue(ctx, job.ID, job.Expires)
	}
	if err := u.record(audit.Expire, job.ID); err != nil {
		return err
	}
	if err := u.Jobs.Expire(ctx, job.ID, u.Now()); err != nil && !gone(err) {
		return err
	}
	u.metrics.expired.Inc()
	log.Info("job expired")
	return u.purge(ctx, log, job.ID)
}

// Purge is the task that a cancel enqueues, and a unit that was still writing when its job ended. A job that is still its
// owner's is left alone. A failed one keeps its record, which says why, but nothing that was exported for it.
func (u *Upkeep) Purge(ctx context.Context, id export.JobID) error {
	job, err := u.Jobs.Job(ctx, id)
	if err != nil && !errors.Is(err, export.ErrNotFound) {
		return err
	}
	if err == nil && job.State == export.Failed {
		_, err := u.Objects.DeletePrefix(ctx, export.JobPrefix(id))
		return err
	}
	if err == nil && job.State != export.Cancelled && job.State != export.Expired {
		return nil
	}
	return u.purge(ctx, u.about(id, job), id)
}

// purge deletes everything of a job, the record last: as long as the record or its index entry is there, a purge that
// was killed is found and done again.
func (u *Upkeep) purge(ctx context.Context, log *slog.Logger, id export.JobID) error {
	for _, step := range u.purgeSteps(id) {
		if err := step(ctx); err != nil {
			return fmt.Errorf("purge job %s: %w", id, err)
		}
	}
	u.metrics.purged.Inc()
	log.Info("job purged")
	return nil
}

// record puts a step on record. What cannot be recorded is not done: the next tick tries again.
func (u *Upkeep) record(action audit.Action, id export.JobID) error {
	return u.Audit.Record(audit.Event{Action: action, Outcome: audit.Success, Job: id})
}

// errNotEmpty: an object came in while the prefix was deleted, from a worker that does not know yet that it lost.
var errNotEmpty = errors.New("objects are left under the job's prefix")

// purgeSteps are the steps of a purge, in order. Each is idempotent.
func (u *Upkeep) purgeSteps(id export.JobID) []func(context.Context) error {
	prefix := export.JobPrefix(id)
	return []func(context.Context) error{
		func(ctx context.Context) error { // objects and unfinished uploads
			_, err := u.Objects.DeletePrefix(ctx, prefix)
			return err
		},
		func(ctx context.Context) error { // nothing may be left before the job is forgotten
			return u.Objects.List(ctx, prefix, func(objects.Info) error { return errNotEmpty })
		},
		func(context.Context) error { // on record before the job is forgotten; a purge that is done again is there again
			return u.record(audit.Purge, id)
		},
		func(ctx context.Context) error { // its place among what its owner has at work, which the record leads to
			job, err := u.Jobs.Job(ctx, id)
			if errors.Is(err, export.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return u.Jobs.Withdraw(ctx, job)
		},
		func(ctx context.Context) error { // the record, then the index entries
			return u.Jobs.Remove(ctx, id)
		},
	}
}
