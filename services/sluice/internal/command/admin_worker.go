package command

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) worker(admin *adminFlags) *cobra.Command {
	return parent("worker", "List workers and queues, and drain a worker",
		"List workers and queues, and drain a worker (docs/operating.md).",
		a.workerList(admin), a.workerDrain(admin))
}

// workerOutput is a worker as JSON.
type workerOutput struct {
	ID       string          `json:"id"`
	Host     string          `json:"host"`
	PID      int             `json:"pid"`
	Started  time.Time       `json:"started"`
	Slots    int             `json:"slots"`
	Draining bool            `json:"draining"`
	Obeys    bool            `json:"drainable"`
	Units    []runningOutput `json:"units"`
}

type runningOutput struct {
	Job   string    `json:"job"`
	Unit  string    `json:"unit"`
	Fence int64     `json:"fence"`
	Since time.Time `json:"since"`
}

// queueOutput is a queue as JSON.
type queueOutput struct {
	Queue     string  `json:"queue"`
	Pending   int     `json:"pending"`
	Active    int     `json:"active"`
	Scheduled int     `json:"scheduled"`
	Retry     int     `json:"retry"`
	Oldest    float64 `json:"oldest_seconds"`
}

func (a *app) workerList(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.reads(&cobra.Command{
		Use:   "list",
		Short: "List the workers with their units, and the queues",
		Long:  `List the live workers with their units, and the queues. A killed worker is listed for about ten more seconds.`,
		Args:  cobra.NoArgs,
		RunE: a.reading(&flags, func(ctx context.Context, o *ops.Operator, _ []string) error {
			workers, err := o.Workers(ctx)
			if err != nil {
				return err
			}
			queues, err := o.Queues(ctx)
			if err != nil {
				return err
			}
			if flags.json {
				return a.printJSON(workersJSON(workers, queues))
			}
			return a.printWorkers(workers, queues)
		}),
	})
}

func workersJSON(workers []queue.Process, queues []queue.Waiting) any {
	output := struct {
		Workers []workerOutput `json:"workers"`
		Queues  []queueOutput  `json:"queues"`
	}{[]workerOutput{}, []queueOutput{}}
	for _, w := range workers {
		one := workerOutput{
			ID: w.ID, Host: w.Host, PID: w.PID, Started: w.Started, Slots: w.Slots, Draining: w.Draining, Obeys: w.Obeys,
			Units: []runningOutput{},
		}
		for _, task := range w.Tasks {
			one.Units = append(one.Units, runningOutput{
				Job: string(task.Task.Job), Unit: string(task.Task.Unit), Fence: task.Task.Fence, Since: task.Since,
			})
		}
		output.Workers = append(output.Workers, one)
	}
	for _, q := range queues {
		output.Queues = append(output.Queues, queueOutput{q.Queue, q.Pending, q.Active, q.Scheduled, q.Retry, seconds(q.Oldest)})
	}
	return output
}

func (a *app) printWorkers(workers []queue.Process, queues []queue.Waiting) error {
	rows := [][]string{{"worker", "state", "up", "slots", "busy"}}
	running := [][]string{{"job", "unit", "fence", "worker", "for"}}
	for _, w := range workers {
		state := "active"
		switch {
		case w.Draining:
			state = "draining"
		case !w.Obeys:
			state = "active, cannot be drained"
		}
		rows = append(rows, []string{
			w.ID, state, span(a.now().Sub(w.Started)), strconv.Itoa(w.Slots), strconv.Itoa(len(w.Tasks)),
		})
		for _, task := range w.Tasks {
			running = append(running, []string{
				string(task.Task.Job), string(task.Task.Unit), decimal(task.Task.Fence), w.ID, span(a.now().Sub(task.Since)),
			})
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
	rows = [][]string{{"queue", "pending", "active", "later", "oldest"}}
	for _, q := range queues {
		rows = append(rows, []string{
			q.Queue, strconv.Itoa(q.Pending), strconv.Itoa(q.Active), strconv.Itoa(q.Scheduled + q.Retry), span(q.Oldest),
		})
	}
	return a.printBelow(rows)
}

func (a *app) workerDrain(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.destroys(&cobra.Command{
		Use:   "drain WORKER",
		Short: "Shut down a worker gracefully",
		Long: `Shut down a worker as a SIGTERM does: it takes no more units, finishes what it can within its
SLUICE_WORKER_DRAIN, returns the rest to the queue, and exits with 0. Its supervisor (Kubernetes, compose, systemd) then
starts another; to have one less, scale down instead. WORKER is an id of sluice admin worker list. The command asks for
confirmation unless --yes.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			if err := a.confirm(&flags, fmt.Sprintf("Shut down worker %s?", printable(args[0]))); err != nil {
				return err
			}
			return a.change(&flags, "worker "+args[0]+" is draining", func(o *ops.Operator) error {
				return explainOps("worker", o.DrainWorker(ctx, args[0]))
			})
		}),
	})
}
