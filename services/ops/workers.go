package ops

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Worker is a process that takes units.
type Worker struct {
	ID        string        `json:"id"` // host:pid
	Host      string        `json:"host"`
	PID       int           `json:"pid"`
	Started   time.Time     `json:"started"`
	Slots     int           `json:"slots"` // units at once
	Draining  bool          `json:"draining"`
	Drainable bool          `json:"drainable"` // it accepts DrainWorker
	Units     []RunningUnit `json:"units"`     // the longest first
}

// RunningUnit is a unit that a worker runs.
type RunningUnit struct {
	Job   export.JobID  `json:"job"`
	Unit  export.UnitID `json:"unit"`
	Fence int64         `json:"fence"`
	Since time.Time     `json:"since"`
}

// Workers lists the workers, the oldest first. A killed one is listed for some ten seconds more.
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

// DrainWorker stops a worker as SIGTERM does, within seconds. ErrNotFound when there is no such worker, ErrConflict for a
// process that cannot be drained, such as a standalone server.
func (o *Operator) DrainWorker(ctx context.Context, id string) error {
	if !workerForm.MatchString(id) {
		return fmt.Errorf("a worker of that id: %w", export.ErrNotFound)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: "drain of worker " + id}, func() error {
		return o.Queue.Drain(ctx, id)
	})
}

// Queue is what one queue holds.
type Queue struct {
	Queue     string  `json:"queue"`
	Units     bool    `json:"-"` // it holds units; the other queues are the schedulers'
	Pending   int     `json:"pending"`
	Active    int     `json:"active"`
	Scheduled int     `json:"scheduled"` // not before a given time
	Retry     int     `json:"retry"`
	Oldest    Seconds `json:"oldest_seconds"` // wait of the oldest pending task
}

// Queues lists the queues.
func (o *Operator) Queues(ctx context.Context) ([]Queue, error) {
	all, err := o.Queue.Waiting(ctx)
	queues := []Queue{}
	for _, q := range all {
		queues = append(queues, Queue{
			Queue: q.Queue, Units: q.Units, Pending: q.Pending, Active: q.Active, Scheduled: q.Scheduled, Retry: q.Retry,
			Oldest: Seconds{q.Oldest},
		})
	}
	return queues, err
}
