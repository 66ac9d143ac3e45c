package ops

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Ids are untrusted input that is used in the audit log and in Redis keys.
var (
	unitForm   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)
	workerForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}:[0-9]{1,10}$`)
)

func checkUnit(unit export.UnitID) error {
	if !unitForm.MatchString(string(unit)) {
		return fmt.Errorf("unit id: %w", export.ErrNotFound)
	}
	return nil
}

// RetryUnit runs a unit again now, under a new fence and with its attempts reset. The result of its previous worker is
// discarded. It returns ErrConflict if the unit is done or not yet queued, or if the next stage has begun.
func (o *Operator) RetryUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "retry of unit " + string(unit)}, func() error {
		return o.lifecycle().RetryUnit(ctx, id, unit)
	})
}

// givenUp is the cause that the manifest's error list reports to the owner.
const givenUp = "it was given up by an operator"

// GiveUpUnit marks an open unit as failed. The unit becomes an entry of the manifest's error list, and the job continues.
// It returns ErrConflict for a closed unit, the plan and the seal.
func (o *Operator) GiveUpUnit(ctx context.Context, id export.JobID, unit export.UnitID) error {
	if err := checkUnit(unit); err != nil {
		return err
	}
	return o.change(audit.Event{Action: audit.Admin, Job: id, Target: "giving up unit " + string(unit)}, func() error {
		return o.lifecycle().GiveUpUnit(ctx, id, unit, givenUp)
	})
}

// Cancel cancels a job like a request of its owner: the owner loses access at once, and a scheduler deletes the files. It
// is idempotent. It returns ErrConflict if the job has expired.
func (o *Operator) Cancel(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Cancel, Job: id}, func() error {
		_, err := o.lifecycle().Cancel(ctx, id) // if its purge cannot be queued, the expire pass purges it
		return err
	})
}

// PurgeNow expires a finished job: the owner loses access at once, and a scheduler deletes its files and its record. It is
// idempotent. It returns ErrConflict if the job is live.
func (o *Operator) PurgeNow(ctx context.Context, id export.JobID) error {
	return o.change(audit.Event{Action: audit.Expire, Job: id}, func() error {
		return o.lifecycle().ExpireNow(ctx, id)
	})
}

func (o *Operator) lifecycle() *jobs.Lifecycle {
	return &jobs.Lifecycle{Store: o.Jobs, Queue: o.Queue, Now: o.Now}
}

// Kickoffs reports whether kick-offs are accepted or paused.
type Kickoffs struct {
	Open   bool      `json:"open"`
	Since  time.Time `json:"since,omitzero"` // start of the pause; this and the fields below describe it
	Until  time.Time `json:"until,omitzero"` // zero: until ResumeKickoffs
	Reason string    `json:"reason,omitempty"`
}

// Kickoffs returns the current state of kick-offs.
func (o *Operator) Kickoffs(ctx context.Context) (Kickoffs, error) {
	pause, paused, err := o.Jobs.KickoffsPaused(ctx)
	return Kickoffs{Open: !paused && err == nil, Since: pause.Since.UTC(), Until: pause.Until.UTC(), Reason: pause.Reason}, err
}

const reasonMost = 200

// PauseKickoffs makes every replica of the API refuse kick-offs (503 with Retry-After) until the given time, or until
// ResumeKickoffs if it is zero. The reason is shown to operators and recorded in the audit log; clients never receive it.
// A pause replaces the previous one.
func (o *Operator) PauseKickoffs(ctx context.Context, reason string, until time.Time) error {
	now := o.Now().UTC()
	if err := CheckReason(reason); err != nil {
		return err
	}
	if !until.IsZero() && !until.After(now) {
		return errors.New("the end of the pause is in the past")
	}
	target := "pause of kick-offs"
	if !until.IsZero() {
		target += " until " + until.UTC().Format(time.RFC3339)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: target, Reason: reason}, func() error {
		pause := jobstore.Pause{Reason: reason, Since: now.Truncate(time.Millisecond), Until: until.UTC()}
		return o.Jobs.PauseKickoffs(ctx, pause)
	})
}

// CheckReason rejects a reason that is too long or is not a single line of text.
func CheckReason(reason string) error {
	if utf8.RuneCountInString(reason) > reasonMost {
		return errors.New("the reason is longer than 200 characters")
	}
	for _, r := range reason {
		if !unicode.IsPrint(r) {
			return errors.New("the reason is not a single line of text")
		}
	}
	return nil
}

// ResumeKickoffs accepts kick-offs again. It is idempotent.
func (o *Operator) ResumeKickoffs(ctx context.Context) error {
	return o.change(audit.Event{Action: audit.Admin, Target: "resumption of kick-offs"}, func() error {
		return o.Jobs.ResumeKickoffs(ctx)
	})
}

// Worker is a process that runs units.
type Worker struct {
	ID        string        `json:"id"` // host:pid
	Host      string        `json:"host"`
	PID       int           `json:"pid"`
	Started   time.Time     `json:"started"`
	Slots     int           `json:"slots"` // units at once
	Draining  bool          `json:"draining"`
	Drainable bool          `json:"drainable"` // it accepts DrainWorker
	Units     []RunningUnit `json:"units"`     // longest-running first
}

// RunningUnit is a unit that a worker runs.
type RunningUnit struct {
	Job   export.JobID  `json:"job"`
	Unit  export.UnitID `json:"unit"`
	Fence int64         `json:"fence"`
	Since time.Time     `json:"since"`
}

// Workers lists the workers, oldest first. A killed worker stays listed for about ten seconds.
func (o *Operator) Workers(ctx context.Context) ([]Worker, error) {
	all, err := o.Queue.Processes(ctx)
	workers := []Worker{}
	for _, p := range all {
		if !p.Units {
			continue
		}
		worker := Worker{
			ID: p.ID, Host: p.Host, PID: p.PID, Started: p.Started, Slots: p.Slots, Draining: p.Draining, Drainable: p.Drainable,
			Units: []RunningUnit{},
		}
		for _, running := range p.Tasks {
			worker.Units = append(worker.Units, RunningUnit{
				Job: running.Task.Job, Unit: running.Task.Unit, Fence: running.Task.Fence, Since: running.Since,
			})
		}
		workers = append(workers, worker)
	}
	return workers, err
}

// DrainWorker shuts down a worker gracefully, like SIGTERM, within seconds. It returns ErrNotFound for an unknown worker,
// and ErrConflict for a process that cannot be drained, such as a standalone server.
func (o *Operator) DrainWorker(ctx context.Context, id string) error {
	if !workerForm.MatchString(id) {
		return fmt.Errorf("worker id: %w", export.ErrNotFound)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: "drain of worker " + id}, func() error {
		return o.Queue.Drain(ctx, id)
	})
}

// Queue describes the tasks of one queue. sluice admin --json prints it.
type Queue struct {
	queue.Waiting
	Oldest Seconds `json:"oldestSeconds"` // waiting time of the oldest pending task
}

// Queues lists the queues.
func (o *Operator) Queues(ctx context.Context) ([]Queue, error) {
	all, err := o.Queue.Waiting(ctx)
	queues := []Queue{}
	for _, q := range all {
		queues = append(queues, Queue{q, Seconds{q.Oldest}})
	}
	return queues, err
}
