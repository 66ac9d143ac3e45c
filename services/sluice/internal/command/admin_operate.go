package command

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
)

const redisHelp = `

The command uses Redis: --redis, SLUICE_REDIS_URL, or the content of the file SLUICE_REDIS_URL_FILE.`

const changeHelp = redisHelp + ` The change is
recorded in the audit log first: --audit-log or SLUICE_AUDIT_LOG must name a file that no service writes, or stdout.
SLUICE_AUDIT_KEY or SLUICE_AUDIT_KEY_FILE is the key of its chain.`

// withRedis adds the flags and help of a command that uses Redis.
func (a *app) withRedis(cmd *cobra.Command, help string) *cobra.Command {
	cmd.Long = strings.TrimSpace(cmd.Long) + help
	cmd.Flags().StringVar(&a.flags.redis, "redis", "", "URL of Redis; default: SLUICE_REDIS_URL")
	return cmd
}

// reading completes a read-only command.
func (a *app) reading(
	cmd *cobra.Command, work func(ctx context.Context, o *ops.Operator, args []string) error,
) *cobra.Command {
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		return a.withOperator(nil, func(o *ops.Operator) error { return work(ctx, o, args) })
	})
	return a.withJSON(a.withRedis(cmd, redisHelp))
}

// changing completes a command that changes the object of its arguments. question and done are format strings for the
// arguments. The command prompts with the question unless it is empty, and prints done at the end.
func (a *app) changing(
	cmd *cobra.Command, what, question, done string, work func(ctx context.Context, o *ops.Operator, args []string) error,
) *cobra.Command {
	if question != "" {
		cmd.Flags().BoolVar(&a.flags.yes, "yes", false, "do not ask for confirmation")
	}
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		var shown []any
		for _, arg := range args {
			shown = append(shown, printable(arg))
		}
		if question != "" {
			if err := a.confirm(fmt.Sprintf(question, shown...)); err != nil {
				return err
			}
		}
		return a.change(fmt.Sprintf(done, shown...), func(o *ops.Operator) error {
			err := work(ctx, o, args)
			switch {
			case errors.Is(err, export.ErrNotFound):
				return fmt.Errorf("no such %s: %w", what, err)
			case errors.Is(err, export.ErrNotLive):
				return fmt.Errorf("the job has ended: %w", err)
			}
			return err
		})
	})
	return a.withRedis(cmd, changeHelp)
}

func (a *app) redisConfig() (config.Redis, error) {
	url, err := a.redisURL()
	return config.Redis{Trust: a.trust(), URL: url}, err
}

// withOperator runs the work with an operator. Changes need an audit log.
func (a *app) withOperator(log *audit.Log, work func(o *ops.Operator) error) (err error) {
	redis, err := a.redisConfig()
	if err != nil {
		return err
	}
	jobs, tasks, err := redis.Open()
	if err != nil {
		return a.wrongRedis(err)
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	return work(&ops.Operator{Jobs: jobs, Queue: tasks, Audit: log, Agent: whoami(), Now: time.Now})
}

// change runs the work with an operator and prints the result.
func (a *app) change(done string, work func(o *ops.Operator) error) error {
	if _, err := a.redisConfig(); err != nil { // before the audit log is opened
		return err
	}
	log, err := openAudit(a.flags.audit)
	if err != nil {
		return err
	}
	if log == nil {
		return usage("--audit-log or SLUICE_AUDIT_LOG is required: a file, or stdout")
	}
	if err = errors.Join(a.withOperator(log, work), log.Close()); err != nil {
		return err
	}
	return a.printDone(done + "\n")
}

const auditVariable = "SLUICE_AUDIT_LOG"

// openAudit opens the audit log of the flag or the variable, nil if neither is set. A file is synced after every event.
func openAudit(flag string) (*audit.Log, error) {
	place := orVariable(flag, auditVariable)
	if place == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	key, err := variable("SLUICE_AUDIT_KEY")
	if err != nil {
		return nil, err
	}
	settings := config.Audit{Log: place, Key: key, Sync: !audit.IsStdout(place)}
	if err := settings.Validate(); err != nil {
		return nil, wrong(err, given{"--audit-log", auditVariable, flag != ""})
	}
	log, err := settings.Open("sluice admin", prometheus.NewRegistry())
	if cause := errors.Unwrap(err); flag != "" && cause != nil { // without the name of the variable
		err = fmt.Errorf("--audit-log: %w", cause)
	}
	return log, err
}

// recorded records a change in the audit log, if there is one, makes it, and prints the result. A change that cannot
// be recorded is not made. A failed change is recorded as failed.
func (a *app) recorded(what string, step func() (done string, err error)) error {
	log, err := openAudit(a.flags.audit)
	if err != nil {
		return err
	}
	var done string
	if log == nil {
		done, err = step()
	} else {
		event := audit.Event{Action: audit.Admin, Outcome: audit.Success, Agent: whoami(), Target: what}
		if err = log.Record(event); err == nil {
			if done, err = step(); err != nil {
				event.Outcome, event.Reason = audit.Failed, "the step failed"
				err = errors.Join(err, log.Record(event))
			}
		}
		err = errors.Join(err, log.Close())
	}
	if err != nil {
		return err
	}
	return a.printDone(done)
}

// printDone prints the result of a change: on standard output, or on standard error if the audit log is on standard output.
func (a *app) printDone(done string) error {
	if audit.IsStdout(orVariable(a.flags.audit, auditVariable)) {
		a.say("%s", done)
		return nil
	}
	return a.print(done)
}

func whoami() export.Owner {
	name := strconv.Itoa(os.Getuid()) // in an image without /etc/passwd
	if known, err := user.Current(); err == nil && known.Username != "" {
		name = known.Username
	}
	return export.Owner{Issuer: "urn:sluice:os-user", Subject: name}
}

func (a *app) confirm(question string) error {
	if a.flags.yes {
		return nil
	}
	a.say("%s Type yes to continue: ", question)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && answer == "" {
		a.say("\n")
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("not confirmed; nothing was changed (--yes skips the question)")
	}
	return nil
}

func (a *app) kickoffs() *cobra.Command {
	return parent("kickoffs", "Pause and resume kick-offs",
		`Pause and resume kick-offs on all replicas of the API (docs/operating.md). While they are paused, a kick-off is
answered with 503 and Retry-After. Jobs, status, files and cancel are not affected.`,
		a.kickoffsShow(), a.kickoffsPause(),
		a.changing(&cobra.Command{
			Use:   "resume",
			Short: "Resume kick-offs",
			Long:  "Resume kick-offs. It is not an error if they are not paused.",
		}, "", "", "kick-offs are accepted",
			func(ctx context.Context, o *ops.Operator, _ []string) error { return o.ResumeKickoffs(ctx) }))
}

func (a *app) kickoffsShow() *cobra.Command {
	return a.reading(&cobra.Command{
		Use:     "show",
		Aliases: []string{"status"},
		Short:   "Show whether kick-offs are paused",
		Long:    "Show whether kick-offs are paused, and if so since when, until when and why.",
	}, func(ctx context.Context, o *ops.Operator, _ []string) error {
		kickoffs, err := o.Kickoffs(ctx)
		if err != nil {
			return err
		}
		if kickoffs.Open && !a.flags.json {
			return a.print("open\n")
		}
		var until any = "resumed"
		if !kickoffs.Until.IsZero() {
			until = kickoffs.Until
		}
		return a.show(kickoffs, []row{
			{"kick-offs", "since", "until", "reason"},
			{"paused", kickoffs.Since, until, cmp.Or(printable(kickoffs.Reason), "-")},
		})
	})
}

func (a *app) kickoffsPause() *cobra.Command {
	var reason string
	var last time.Duration
	cmd := a.withRedis(&cobra.Command{
		Use:   "pause --reason TEXT [--for DURATION]",
		Short: "Pause kick-offs",
		Long: `Pause kick-offs for the duration of --for or, without it, until sluice admin kickoffs resume. The reason is for
operators and the audit log; clients do not see it. It must not name a patient.`,
		Example: `  sluice admin kickoffs pause --reason 'upgrade of PostgreSQL' --for 30m --audit-log admin-audit.ndjson`,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if err := ops.CheckReason(reason); err != nil {
				return usage("--reason: %w", err)
			}
			if last < 0 {
				return usage("--for must not be negative")
			}
			var until time.Time
			done := "kick-offs are paused until they are resumed"
			if last > 0 {
				until = time.Now().Add(last)
				done = "kick-offs are paused until " + instant(until)
			}
			return a.change(done, func(o *ops.Operator) error { return o.PauseKickoffs(ctx, reason, until) })
		}),
	}, changeHelp)
	cmd.Flags().StringVar(&reason, "reason", "", "the reason, one line of text")
	cmd.Flags().DurationVar(&last, "for", 0, "duration of the pause, such as 30m")
	require(cmd, "reason")
	return cmd
}

func (a *app) worker() *cobra.Command {
	return parent("worker", "List workers and queues, and drain a worker",
		"List workers and queues, and drain a worker (docs/operating.md).",
		a.workerList(),
		a.changing(&cobra.Command{
			Use:   "drain WORKER",
			Short: "Shut down a worker gracefully",
			Long: `Shut down a worker as a SIGTERM does: it takes no more units, finishes what it can within its
SLUICE_WORKER_DRAIN, returns the rest to the queue, and exits with 0. Its supervisor (Kubernetes, compose, systemd) then
starts another; to have one less, scale down instead. WORKER is an id from sluice admin worker list. The command asks for
confirmation unless --yes.`,
			Example: `  sluice admin worker drain --audit-log admin-audit.ndjson worker-7c9f`,
			Args:    exactly("WORKER"),
		}, "worker", "Shut down worker %s?", "worker %s is draining",
			func(ctx context.Context, o *ops.Operator, args []string) error { return o.DrainWorker(ctx, args[0]) }))
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
		busy, running := workerRows(workers)
		waiting := []row{{"queue", "pending", "active", "later", "oldest"}}
		for _, q := range queues {
			waiting = append(waiting, row{q.Queue, q.Pending, q.Active, q.Scheduled + q.Retry, q.Oldest.Duration})
		}
		return a.show(struct {
			Workers []ops.Worker `json:"workers"`
			Queues  []ops.Queue  `json:"queues"`
		}{workers, queues}, busy, running, waiting)
	})
}

func workerRows(workers []ops.Worker) (busy, running []row) {
	busy = []row{{"worker", "state", "up", "slots", "busy"}}
	running = []row{{"job", "unit", "fence", "worker", "for"}}
	for _, w := range workers {
		state := "active"
		switch {
		case w.Draining:
			state = "draining"
		case !w.Drainable:
			state = "active, cannot be drained"
		}
		busy = append(busy, row{w.ID, state, time.Since(w.Started), w.Slots, len(w.Units)})
		for _, unit := range w.Units {
			running = append(running, row{unit.Job, unit.Unit, unit.Fence, w.ID, time.Since(unit.Since)})
		}
	}
	return busy, running
}
