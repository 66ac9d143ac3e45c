package ops

import (
	"context"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Workers lists the processes that take units, the oldest first. One that died is listed for some ten seconds more.
func (o *Operator) Workers(ctx context.Context) ([]queue.Process, error) {
	all, err := o.Queue.Processes(ctx)
	workers := []queue.Process{}
	for _, process := range all {
		if process.Units {
			workers = append(workers, process)
		}
	}
	return workers, err
}

// DrainWorker has a worker end within seconds as a SIGTERM would: it takes nothing more, finishes what it can within its
// drain time (SLUICE_WORKER_DRAIN), hands the rest back, and exits with 0, so that what supervises it starts another.
// ErrNotFound when there is none of that id; ErrConflict for a process that takes no orders, such as a standalone server.
func (o *Operator) DrainWorker(ctx context.Context, id string) error {
	if !workerForm.MatchString(id) {
		return fmt.Errorf("a worker of that id: %w", export.ErrNotFound)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: "drain of worker " + id}, func() error {
		return o.Queue.Drain(ctx, id)
	})
}

// Queues returns what each queue holds and since when the oldest task waits.
func (o *Operator) Queues(ctx context.Context) ([]queue.Waiting, error) { return o.Queue.Waiting(ctx) }
