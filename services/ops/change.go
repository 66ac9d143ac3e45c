package ops

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
)

// Ids come from outside, and go into the audit log and into keys.
var (
	unitForm   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)
	workerForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}:[0-9]{1,10}$`)
)

func checkUnit(unit export.UnitID) error {
	if !unitForm.MatchString(string(unit)) {
		return fmt.Errorf("a unit of that id: %w", export.ErrNotFound)
	}
	return nil
}

// RetryUnit runs a unit again now, under a new fence and with all its attempts. The result of its previous worker is
// discarded. ErrConflict when it is done or not yet queued, or when the next stage has begun.
func (o *Operator) RetryUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "retry of unit " + string(unit)}, func() error {
		return o.lifecycle().RetryUnit(ctx, id, unit)
	})
}

// givenUp is what the owner reads in the manifest's error list.
const givenUp = "it was given up by an operator"

// GiveUpUnit closes an open unit as failed: it becomes an entry of the manifest's error list, and the job continues.
// ErrConflict for a closed unit, the plan and the seal.
func (o *Operator) GiveUpUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "giving up unit " + string(unit)}, func() error {
		return o.lifecycle().GiveUpUnit(ctx, id, unit, givenUp)
	})
}

// Cancel ends a job as its owner can: it is hidden from its owner at once, and schedulers delete its files. It is
// idempotent. ErrConflict when the job has expired.
func (o *Operator) Cancel(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Cancel, Job: id}, func() error {
		return errors.Join(o.lifecycle().Cancel(ctx, id))
	})
}

// PurgeNow expires a finished job: it is hidden from its owner at once, and schedulers delete its files and record. It
// may be repeated. ErrConflict when the job is live.
func (o *Operator) PurgeNow(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Expire, Job: id}, func() error {
		return o.lifecycle().ExpireNow(ctx, id)
	})
}

func (o *Operator) lifecycle() *jobs.Lifecycle {
	return &jobs.Lifecycle{Store: o.Jobs, Queue: o.Queue, Now: o.Now}
}
