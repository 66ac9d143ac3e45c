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
	return family("worker", "Look at workers, and drain one", "Worker looks at workers, and drains one (docs/operating.md).",
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
	flags := operateFlags{adminFlags: admin}
	return flags.looks(&cobra.Command{
		Use:   "list",
		Short: "List the workers with the units that they have, and the queues",
		Long: `List lists the workers that are alive with the units that they have, and what waits in the queues. A worker that
was killed is listed for some ten seconds more.`,
		Args: cobra.NoArgs,
		RunE: a.looking(&flags, func(ctx context.Context, o *ops.Operator, _ []string) error {
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
		for _, at := range w.Tasks {
			one.Units = append(one.Units, runningOutput{
				Job: string(at.Task.Job), Unit: string(at.Task.Unit), Fence: at.Task.Fence, Since: at.Since,
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
	atWork := [][]string{{"job", "unit", "fence", "worker", "for"}}
	for _, w := range workers {
		state := "active"
		switch {
		case w.Draining:
			state = "draining"
		case !w.Obeys:
			state = "active, takes no orders"
		}
		rows = append(rows, []string{
			w.ID, state, span(a.now().Sub(w.Started)), strconv.Itoa(w.Slots), strconv.Itoa(len(w.Tasks)),
		})
		for _, at := range w.Tasks {
			atWork = append(atWork, []string{
				string(at.Task.Job), string(at.Task.Unit), strconv.FormatInt(at.Task.Fence, 10), w.ID, span(a.now().Sub(at.Since)),
			})
		}
	}
	if err := a.printColumns(rows); err != nil {
		return err
	}
	if len(atWork) > 1 {
		if err := a.printBelow(atWork); err != nil {
			return err
		}
	}
	waits := [][]string{{"queue", "pending", "active", "later", "oldest"}}
	for _, q := range queues {
		waits = append(waits, []string{
			q.Queue, strconv.Itoa(q.Pending), strconv.Itoa(q.Active), strconv.Itoa(q.Scheduled + q.Retry), span(q.Oldest),
		})
	}
	return a.printBelow(waits)
}

func (a *app) workerDrain(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	return flags.destroys(&cobra.Command{
		Use:   "drain WORKER",
		Short: "End a worker in order: it hands back what it has",
		Long: `Drain has a worker end within seconds as a SIGTERM would: it takes no further unit, finishes what it can within its
SLUICE_WORKER_DRAIN, hands the rest back, and exits with 0. What supervises it (Kubernetes, compose, systemd) then
starts another; to have one less, scale down instead. WORKER is its id in sluice admin worker list. It asks before;
--yes does not.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			if err := a.confirm(&flags, fmt.Sprintf("End worker %s?", printable(args[0]))); err != nil {
				return err
			}
			return a.change(&flags, "worker "+args[0]+" is told to end", func(o *ops.Operator) error {
				return told("worker", o.DrainWorker(ctx, args[0]))
			})
		}),
	})
}
