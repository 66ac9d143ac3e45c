package upkeep

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

const (
	activePage  = 200
	rescueBatch = 200
	// settling is how long an index entry may differ from the record: the two are written one after the other.
	settling = time.Minute
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
	switch {
	case errors.Is(err, export.ErrNotFound):
		if settled {
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
		u.Logger.Error("job took too long", "job_id", job.ID, "state", job.State)
		return u.Jobs.Fail(ctx, job.ID, "The export took too long and was given up.", now, now.Add(u.cfg.Retention))
	}

	silent, err := u.Jobs.Silent(ctx, job.ID, now.Add(-u.cfg.Silence), rescueBatch)
	if err != nil {
		return err
	}
	issued, err := u.Jobs.Issue(ctx, job.ID, u.cfg.Outstanding)
	if err != nil {
		return err
	}
	var errs []error
	for _, unit := range append(silent, issued...) {
		if unit.Lost {
			u.metrics.rescued.Inc()
			u.Logger.Warn("unit lost its worker", "job_id", job.ID, "unit", unit.Unit.ID, "fence", unit.Fence,
				"attempt", unit.Attempts)
		}
		errs = append(errs, u.Queue.EnqueueUnit(ctx, queue.Task{
			Kind: unit.Unit.Kind, Job: job.ID, Unit: unit.Unit.ID, Fence: unit.Fence,
		}))
	}
	return errors.Join(errs...)
}
