package command

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) worker() *cobra.Command {
	return parent("worker", "List workers and queues, and drain a worker",
		"List workers and queues, and drain a worker (docs/operating.md).",
		a.workerList(), a.workerDrain())
}

func (a *app) workerList() *cobra.Command {
	return a.reading(&cobra.Command{
		Use:   "list",
		Short: "List the workers with their units, and the queues",
		Long:  `List the live workers with their units, and the queues. A killed worker is listed for about ten more seconds.`,
	}, func(ctx context.Context, o *ops.Operator, _ []string) error {
		workers, err := o.Workers(ctx)
		if err != nil {
			return err
		}
		queues, err := o.Queues(ctx)
		if err != nil {
			return err
		}
		if a.flags.json {
			return a.printJSON(struct {
				Workers []ops.Worker `json:"workers"`
				Queues  []ops.Queue  `json:"queues"`
			}{workers, queues})
		}
		return a.printWorkers(workers, queues)
	})
}

func (a *app) printWorkers(workers []ops.Worker, queues []ops.Queue) error {
	rows := []row{{"worker", "state", "up", "slots", "busy"}}
	running := []row{{"job", "unit", "fence", "worker", "for"}}
	for _, w := range workers {
		state := "active"
		switch {
		case w.Draining:
			state = "draining"
		case !w.Drainable:
			state = "active, cannot be drained"
		}
		rows = append(rows, row{w.ID, state, a.now().Sub(w.Started), w.Slots, len(w.Units)})
		for _, unit := range w.Units {
			running = append(running, row{unit.Job, unit.Unit, unit.Fence, w.ID, a.now().Sub(unit.Since)})
		}
	}
	if err := a.printColumns(rows); err != nil {
		return err
	}
	if len(running) > 1 {
		if err := a.printBelow(running); err != nil {
			return err
		}
	}
	rows = []row{{"queue", "pending", "active", "later", "oldest"}}
	for _, q := range queues {
		rows = append(rows, row{q.Queue, q.Pending, q.Active, q.Scheduled + q.Retry, q.Oldest.Duration})
	}
	return a.printBelow(rows)
}

func (a *app) workerDrain() *cobra.Command {
	return a.changing(&cobra.Command{
		Use:   "drain WORKER",
		Short: "Shut down a worker gracefully",
		Long: `Shut down a worker as a SIGTERM does: it takes no more units, finishes what it can within its
SLUICE_WORKER_DRAIN, returns the rest to the queue, and exits with 0. Its supervisor (Kubernetes, compose, systemd) then
starts another; to have one less, scale down instead. WORKER is an id of sluice admin worker list. The command asks for
confirmation unless --yes.`,
		Args: cobra.ExactArgs(1),
	}, "worker", "Shut down worker %s?", "worker %s is draining",
		func(ctx context.Context, o *ops.Operator, args []string) error { return o.DrainWorker(ctx, args[0]) })
}
