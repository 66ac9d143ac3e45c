// Package jobs implements the steps of a job. It is the only package that pairs a step in the job store with the steps that
// follow in the queue and the object store. The API, the workers, the scheduler and the operators' commands call it.
//
// The step in the store decides; it is one script. The steps that follow may be lost with the process: a rescue enqueues a
// unit without a task, the expire pass enqueues the purge of every due job again, and the sweep deletes the files of failed
// jobs. So each function may be repeated or interrupted.
package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Lifecycle moves jobs through their states. Store, Queue and Now are required.
type Lifecycle struct {
	Store   *jobstore.Store
	Queue   *queue.Client
	Objects *objects.Store // for Start with patients, and for Purge
	Audit   *audit.Log     // for ExpireDue and Purge
	Now     func() time.Time

	Settings
}

// Settings are the settings that workers and the scheduler share.
type Settings struct {
	// units of one job that are queued or running at once; 0: twice the slots of all workers, at least 16; the
	// same for worker and scheduler
	Outstanding int `env:"UNITS_OUTSTANDING" envDefault:"0"`
	// how long an ended job is kept (spec 6); the same for worker and scheduler
	Retention time.Duration `env:"RETENTION" envDefault:"168h"`
}

// Validate returns every problem of the settings.
func (s Settings) Validate() error {
	var errs []error
	if s.Outstanding < 0 {
		errs = append(errs, errors.New("SLUICE_UNITS_OUTSTANDING must not be negative"))
	}
	if s.Retention <= 0 {
		errs = append(errs, errors.New("SLUICE_RETENTION must be positive"))
	}
	return errors.Join(errs...)
}

// Gone reports whether the error means that another caller has ended the job or the unit meanwhile.
func Gone(err error) bool {
	return errors.Is(err, export.ErrNotFound) || errors.Is(err, export.ErrConflict) ||
		errors.Is(err, export.ErrNotLive) || errors.Is(err, export.ErrFenced)
}

// Clock returns the earlier of the times of this machine and of Redis. Jobs expire and fail by it, so that no single wrong
// clock ends them early.
func (l *Lifecycle) Clock(ctx context.Context) (time.Time, error) {
	now, err := l.Store.Time(ctx)
	if own := l.Now(); err == nil && own.Before(now) {
		now = own
	}
	return now, err
}

// enqueue enqueues the unit's task. It is not an error if a worker has already taken the task.
func (l *Lifecycle) enqueue(ctx context.Context, task queue.Task) error {
	if task.Trace == "" {
		task.Trace = telemetry.TraceParent(ctx)
	}
	err := l.Queue.EnqueueUnit(ctx, task)
	if errors.Is(err, queue.ErrTaken) {
		return nil
	}
	return err
}
