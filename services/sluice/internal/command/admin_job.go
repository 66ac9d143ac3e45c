package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) job() *cobra.Command {
	return parent("job", "List, show, cancel and purge jobs",
		`List, show, cancel and purge the jobs of a deployment (docs/operating.md). JOB is the id of a job, or the first
characters of it, at least 6, if they are those of one job only.`,
		a.jobList(), a.jobShow(),
		a.jobEnd("cancel", "Cancel a live or finished job and delete its files",
			`Cancel a job as its owner can: its owner gets 404 from then on, its units stop within seconds, and a scheduler deletes
its files and its record. The command asks for confirmation unless --yes.`,
			"Cancel job %s and delete all its files?", "cancelled job %s; a scheduler deletes its files",
			(*ops.Operator).Cancel),
		a.jobEnd("purge", "Expire a finished job now and delete its files",
			`Expire a finished or failed job now: its owner gets 404 from then on, and a scheduler deletes its files and its record.
A live job is refused: cancel it instead. The command asks for confirmation unless --yes.`,
			"Delete job %s and all its files?", "job %s has expired; a scheduler deletes its files", (*ops.Operator).PurgeNow))
}

// ownerForm is a prefix of an owner's digest.
var ownerForm = regexp.MustCompile(`^[0-9a-f]{0,64}$`)

func (a *app) jobList() *cobra.Command {
	var filter ops.Filter
	var states []string
	cmd := a.reading(&cobra.Command{
		Use:   "list",
		Short: "List the jobs, newest first",
		Long: `List the jobs that are live, finished and not yet expired, or waiting to be purged. Owners are shown by their
digest, as in logs.`,
		Example: `  sluice admin job list --state failed,running --older 2h`,
	}, func(ctx context.Context, o *ops.Operator, _ []string) error {
		for _, text := range states {
			state := export.State(text)
			if !slices.Contains(export.States(), state) {
				return usage("--state: %q is not one of %s%s", text, strings.Join(stateNames(), ", "), didYouMean(text, stateNames()))
			}
			filter.States = append(filter.States, state)
		}
		if !ownerForm.MatchString(filter.Owner) {
			return usage("--owner is not a hexadecimal prefix of an owner's digest")
		}
		if filter.Offset < 0 || filter.Limit < 1 || filter.Older < 0 {
			return usage("--offset and --older must not be negative, and --limit must be at least 1")
		}
		page, err := o.List(ctx, filter)
		if err == nil {
			err = o.MarkIncomplete(ctx, page.Jobs, nil)
		}
		if err != nil {
			return err
		}
		return a.printJobs(page)
	})
	cmd.Flags().StringSliceVar(&states, "state", nil, "only jobs in this state, such as running or failed; repeatable")
	defined(cmd.RegisterFlagCompletionFunc("state", completeList(stateNames())))
	cmd.Flags().StringVar(&filter.Owner, "owner", "", "only jobs of owners whose digest has this prefix")
	cmd.Flags().DurationVar(&filter.Older, "older", 0, "only jobs at least this old, such as 2h")
	cmd.Flags().IntVar(&filter.Offset, "offset", 0, "number of jobs to skip")
	cmd.Flags().IntVar(&filter.Limit, "limit", ops.PageSize, "maximum number of jobs")
	return cmd
}

func stateNames() (names []string) {
	for _, state := range export.States() {
		names = append(names, string(state))
	}
	return names
}

func (a *app) printJobs(page ops.Page) error {
	rows := []row{{"job", "state", "done", "owner", "group", "types", "age", "expires in"}}
	for _, job := range page.Jobs {
		var expires any = "-"
		if !job.Expires.IsZero() {
			expires = time.Until(job.Expires)
		}
		percent := fmt.Sprintf("%d%%", job.Percent)
		rows = append(rows, row{
			job.ID, stateOf(job), percent, job.Owner[:16], job.Group, len(job.Types), job.Age.Duration, expires,
		})
	}
	if err := a.show(page, rows); err != nil || a.flags.json {
		return err
	}
	if len(page.Jobs) < page.Matches {
		a.say("%d of %s; see --offset and --limit\n", len(page.Jobs), plural.Of(page.Matches, "job"))
	}
	if page.Bounded {
		a.say("There are too many jobs: the oldest are not listed.\n")
	}
	return nil
}

func (a *app) jobShow() *cobra.Command {
	var which string
	cmd := a.ofJob(a.reading(&cobra.Command{
		Use:   "show JOB",
		Short: "Show a job, what it leaves out, its progress by type, and its units",
		Long: `Show a job, what it leaves out, its progress by resource type, and its units: the open and failed ones
(--units open, the default), all, or none. The last cause of a unit is a class: unavailable (a dependency
could not be reached), error (its data could not be read or stored), draining (its worker stopped), lost (its
worker sent no heartbeats) or operator (an operator retried it).`,
		Args: exactly("JOB"),
		Example: `  sluice admin job show yb4usboi
  sluice admin job show --units all --json yb4usboilbhicio2qlsbfk4jzq`,
	}, func(ctx context.Context, o *ops.Operator, args []string) error {
		if !slices.Contains([]string{"open", "all", "none"}, which) {
			return usage("--units must be open, all or none")
		}
		detail, err := o.Inspect(ctx, export.JobID(args[0]))
		if errors.Is(err, export.ErrNotFound) {
			return fmt.Errorf("no such job: %w", err)
		}
		if err != nil {
			return err
		}
		detail.Units = slices.DeleteFunc(detail.Units, func(u ops.Unit) bool {
			return which == "none" || which == "open" && u.State == ops.UnitDone
		})
		return a.show(detail, factRows(detail), leftOutRows(detail.LeftOut), progressRows(detail.Progress),
			unitRows(detail.Units))
	}))
	cmd.Flags().StringVar(&which, "units", "open", "units to show: open (and failed), all or none")
	return cmd
}

func someOf[T ~string](names []T) string {
	const most = 6
	var text strings.Builder
	for i, name := range names[:min(len(names), most)] {
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(string(name))
	}
	if len(names) > most {
		fmt.Fprintf(&text, " and %d more", len(names)-most)
	}
	return text.String()
}

func factRows(d ops.Detail) []row {
	facts := []row{
		{"job", d.ID}, {"state", fmt.Sprintf("%s, %d%%", stateOf(d.Job), d.Percent)}, {"owner", d.Owner},
		{"request", fmt.Sprintf("Group/%s: %s (%s)", d.Group, someOf(d.Types), d.Dialect)},
		{"created", instant(d.Created) + ", " + span(d.Age.Duration) + " ago"},
	}
	for _, fact := range []struct {
		name string
		at   time.Time
	}{{"snapshot", d.Snapshot}, {"finished", d.Finished}, {"expires", d.Expires}} {
		if !fact.at.IsZero() {
			facts = append(facts, row{fact.name, fact.at})
		}
	}
	if !d.Snapshot.IsZero() {
		facts = append(facts, row{"patients", d.Patients})
	}
	if d.Failure != "" {
		facts = append(facts, row{"failure", d.Failure})
	}
	for _, text := range d.Errors {
		facts = append(facts, row{"error", text})
	}
	return facts
}

// stateOf returns the state of a job in words.
func stateOf(job ops.Job) string {
	if job.Incomplete {
		return string(job.State) + " (data is missing)"
	}
	return string(job.State)
}

func leftOutRows(left []export.LeftOut) []row {
	rows := []row{{"left out", "count", "reason"}}
	for _, l := range left {
		count := any("some")
		if l.Count > 0 {
			count = l.Count
		}
		rows = append(rows, row{cmp.Or(l.Type, "-"), count, l.Reason.Text()})
	}
	return rows
}

func progressRows(progress []ops.Progress) []row {
	rows := []row{{"type", "units", "done", "failed", "running", "resources", "bytes"}}
	for _, p := range progress {
		rows = append(rows, row{p.Type, p.Units, p.Done, p.Failed, p.Running, p.Resources, p.Bytes})
	}
	return rows
}

func unitRows(units []ops.Unit) []row {
	rows := []row{{"unit", "kind", "state", "fence", "failed attempts", "last heartbeat", "last cause"}}
	for _, u := range units {
		heartbeat := "-"
		switch u.State {
		case ops.UnitDelayed:
			heartbeat = "retry in " + span(-u.Silent.Duration)
		case ops.UnitRunning, ops.UnitQueued:
			heartbeat = span(u.Silent.Duration) + " ago"
		default:
		}
		rows = append(rows, row{u.ID, u.Kind, u.State, u.Fence, u.Attempts, heartbeat, cmp.Or(u.Cause, "-")})
	}
	return rows
}

// jobPrefix is the form of the beginning of a job's id.
var jobPrefix = regexp.MustCompile(`^[a-z2-7]{6,26}$`)

// ofJob completes a command whose first argument is the id of a job: it may be the beginning of one.
func (a *app) ofJob(cmd *cobra.Command) *cobra.Command {
	check, work := cmd.Args, cmd.RunE
	cmd.Args = cobra.MatchAll(check, func(_ *cobra.Command, args []string) error {
		if !jobPrefix.MatchString(args[0]) {
			return usage("%q is not a job id: 26 characters of a-z and 2-7, or at least the first 6 of them", args[0])
		}
		return nil
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.running = true
		id, err := a.findJob(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return work(cmd, append([]string{string(id)}, args[1:]...))
	}
	return cmd
}

// findJob returns the id of the only job whose id has the prefix. A whole id is returned as it is.
func (a *app) findJob(ctx context.Context, prefix string) (id export.JobID, err error) {
	if id, err := export.ParseJobID(prefix); err == nil {
		return id, nil
	}
	err = a.withOperator(nil, func(o *ops.Operator) error {
		found, more, err := o.Find(ctx, prefix)
		switch {
		case err != nil:
			return err
		case len(found) > 1:
			return fmt.Errorf("the ids of %d jobs begin with %s: %s", len(found), prefix, someOf(found))
		case more: // the ids of others may have the prefix
			return errors.New("there are too many jobs to find one by the beginning of its id: give the whole id")
		case len(found) == 0:
			return fmt.Errorf("no such job: no id begins with %s", prefix)
		}
		id = found[0]
		return nil
	})
	return id, err
}

func (a *app) jobEnd(
	name, short, long, question, done string, end func(*ops.Operator, context.Context, export.JobID) error,
) *cobra.Command {
	return a.ofJob(a.changing(&cobra.Command{
		Use: name + " JOB", Short: short, Long: long, Args: exactly("JOB"),
		Example: fmt.Sprintf("  sluice admin job %s --audit-log admin-audit.ndjson yb4usboilbhicio2qlsbfk4jzq", name),
	}, "job", question, done, func(ctx context.Context, o *ops.Operator, args []string) error {
		return end(o, ctx, export.JobID(args[0]))
	}))
}

func (a *app) unit() *cobra.Command {
	return parent("unit", "Retry or fail a unit of a job",
		`Retry or fail a unit of a job (docs/operating.md). sluice admin job show lists the units. JOB is the id of a job, or
the first characters of it, at least 6, if they are those of one job only.`,
		a.unitChange("retry", "Run a unit again now",
			`Run a unit again now, with a full number of attempts: a failed unit, one that makes no progress, or one that
waits for its retry. Results of the previous worker are discarded. The command is refused for a unit that is done, and
when a later stage that depends on the unit has started: the references or the manifest.`,
			"", "unit %[2]s of job %[1]s is queued again", (*ops.Operator).RetryUnit),
		a.unitChange("fail", "Fail a unit: the job continues without it",
			`Fail an open unit: it becomes an entry of the manifest's error list, and the rest of the job continues. The
command is refused for the plan and the seal, which every export needs: cancel the job instead. It asks for confirmation
unless --yes.`,
			"Fail unit %[2]s of job %[1]s? Its data will be missing.", "unit %[2]s of job %[1]s has failed",
			(*ops.Operator).GiveUpUnit))
}

func (a *app) unitChange(
	name, short, long, question, done string,
	change func(*ops.Operator, context.Context, export.JobID, export.UnitID) error,
) *cobra.Command {
	return a.ofJob(a.changing(&cobra.Command{
		Use: name + " JOB UNIT", Short: short, Long: long, Args: exactly("JOB", "UNIT"),
		Example: fmt.Sprintf("  sluice admin unit %s --audit-log admin-audit.ndjson yb4usboi Patient-00000", name),
	}, "job or unit", question, done, func(ctx context.Context, o *ops.Operator, args []string) error {
		return change(o, ctx, export.JobID(args[0]), export.UnitID(args[1]))
	}))
}
