package command

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) job(admin *adminFlags) *cobra.Command {
	return parent("job", "List, show, cancel and purge jobs",
		"List, show, cancel and purge the jobs of a deployment (docs/operating.md).",
		a.jobList(admin), a.jobShow(admin), a.jobCancel(admin), a.jobPurge(admin))
}

// jobOutput is a job as JSON.
type jobOutput struct {
	ID       string     `json:"id"`
	State    string     `json:"state"`
	Percent  int        `json:"percent"`
	Owner    string     `json:"owner"` // its digest
	Group    string     `json:"group"`
	Types    []string   `json:"types"`
	Dialect  string     `json:"dialect"`
	Created  time.Time  `json:"created"`
	Snapshot *time.Time `json:"snapshot,omitempty"`
	Finished *time.Time `json:"finished,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
	Age      float64    `json:"age_seconds"`
	Patients int64      `json:"patients"`
	Failure  string     `json:"failure,omitempty"`
}

func jobJSON(j ops.Job) jobOutput {
	return jobOutput{
		ID: string(j.ID), State: string(j.State), Percent: j.Percent, Owner: j.Owner, Group: j.Group, Types: j.Types,
		Dialect: string(j.Dialect), Created: j.Created, Snapshot: moment(j.Snapshot), Finished: moment(j.Finished),
		Expires: moment(j.Expires), Age: seconds(j.Age), Patients: j.Patients, Failure: j.Failure,
	}
}

// ownerForm is a prefix of an owner's digest.
var ownerForm = regexp.MustCompile(`^[0-9a-f]{0,64}$`)

func (a *app) jobList(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	var filter ops.Filter
	var states []string
	cmd := flags.reads(&cobra.Command{
		Use:   "list",
		Short: "List the jobs, the newest first",
		Long: `List the jobs that are live, finished and not yet expired, or waiting to be purged. Owners are shown by their
digest, as in logs.`,
		Args: cobra.NoArgs,
		RunE: a.reading(&flags, func(ctx context.Context, o *ops.Operator, _ []string) error {
			for _, text := range states {
				state := export.State(text)
				if !slices.Contains(export.States(), state) {
					return usage("--state: %q is not one of %v", text, export.States())
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
			if err != nil {
				return err
			}
			return a.printJobs(&flags, page)
		}),
	})
	cmd.Flags().StringSliceVar(&states, "state", nil, "only jobs in this state; repeatable")
	cmd.Flags().StringVar(&filter.Owner, "owner", "", "only jobs of owners whose digest has this prefix")
	cmd.Flags().DurationVar(&filter.Older, "older", 0, "only jobs at least this old, such as 2h")
	cmd.Flags().IntVar(&filter.Offset, "offset", 0, "number of jobs to skip")
	cmd.Flags().IntVar(&filter.Limit, "limit", ops.PageSize, "maximum number of jobs")
	return cmd
}

func (a *app) printJobs(flags *redisFlags, page ops.Page) error {
	if flags.json {
		output := struct {
			Jobs    []jobOutput          `json:"jobs"`
			Matches int                  `json:"matches"`
			States  map[export.State]int `json:"states"` // of all jobs
			Bounded bool                 `json:"bounded"`
		}{Jobs: []jobOutput{}, Matches: page.Matches, States: page.States, Bounded: page.Bounded}
		for _, job := range page.Jobs {
			output.Jobs = append(output.Jobs, jobJSON(job))
		}
		return a.printJSON(output)
	}
	rows := [][]string{{"job", "state", "done", "owner", "group", "types", "age", "expires in"}}
	for _, job := range page.Jobs {
		expires := "-"
		if !job.Expires.IsZero() {
			expires = span(job.Expires.Sub(a.now()))
		}
		rows = append(rows, []string{
			string(job.ID), string(job.State), strconv.Itoa(job.Percent) + "%", job.Owner[:16], job.Group,
			strconv.Itoa(len(job.Types)), span(job.Age), expires,
		})
	}
	if err := a.printColumns(rows); err != nil {
		return err
	}
	if len(page.Jobs) < page.Matches {
		a.say("%d of %d jobs; see --offset and --limit\n", len(page.Jobs), page.Matches)
	}
	if page.Bounded {
		a.say("There are too many jobs: the oldest are not listed.\n")
	}
	return nil
}

// unitOutput is a unit as JSON.
type unitOutput struct {
	ID        string  `json:"id"`
	Kind      string  `json:"kind"`
	Type      string  `json:"type,omitempty"`
	State     string  `json:"state"`
	Fence     int64   `json:"fence"`
	Attempts  int     `json:"failed_attempts"`
	Silent    float64 `json:"silent_seconds"`
	Cause     string  `json:"last_cause,omitempty"`
	Failure   string  `json:"failure,omitempty"`
	Resources int64   `json:"resources"`
	Bytes     int64   `json:"bytes"`
}

// progressOutput is the progress of a type as JSON.
type progressOutput struct {
	Type      string `json:"type"`
	Units     int    `json:"units"`
	Done      int    `json:"done"`
	Failed    int    `json:"failed"`
	Running   int    `json:"running"`
	Files     int64  `json:"files"`
	Resources int64  `json:"resources"`
	Bytes     int64  `json:"bytes"`
	Stored    int64  `json:"stored_bytes"`
	Withheld  int64  `json:"withheld"`
}

func (a *app) jobShow(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	var which string
	cmd := flags.reads(&cobra.Command{
		Use:   "show JOB",
		Short: "Show a job, its progress by type, and its units",
		Long: `Show a job, its progress by resource type, and its units: the open and failed ones (--units open, the default),
all, or none. The last cause of a unit is a class: unavailable (a dependency could not be reached), error (its data
could not be read or stored), draining (its worker stopped), lost (its worker sent no heartbeats) or operator (an
operator retried it).`,
		Args: cobra.ExactArgs(1),
		RunE: a.reading(&flags, func(ctx context.Context, o *ops.Operator, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			if !slices.Contains([]string{"open", "all", "none"}, which) {
				return usage("--units must be open, all or none")
			}
			detail, err := o.Inspect(ctx, id)
			if err != nil {
				return explainOps("job", err)
			}
			detail.Units = slices.DeleteFunc(detail.Units, func(u ops.Unit) bool {
				return which == "none" || which == "open" && u.State == ops.UnitDone
			})
			if flags.json {
				return a.printJSON(detailJSON(detail))
			}
			return a.printDetail(detail)
		}),
	})
	cmd.Flags().StringVar(&which, "units", "open", "units to show: open (and failed), all or none")
	return cmd
}

func detailJSON(d ops.Detail) any {
	output := struct {
		jobOutput
		Progress []progressOutput `json:"progress"`
		Units    []unitOutput     `json:"units"`
		Errors   []string         `json:"errors"`
	}{jobOutput: jobJSON(d.Job), Progress: []progressOutput{}, Units: []unitOutput{}, Errors: append([]string{}, d.Errors...)}
	for _, p := range d.Progress {
		output.Progress = append(output.Progress, progressOutput{
			Type: p.Type, Units: p.Units, Done: p.Done, Failed: p.Failed, Running: p.Run, Files: p.Files,
			Resources: p.Resources, Bytes: p.Bytes, Stored: p.Stored, Withheld: p.Withheld,
		})
	}
	for _, u := range d.Units {
		output.Units = append(output.Units, unitOutput{
			ID: string(u.ID), Kind: string(u.Kind), Type: u.Type, State: string(u.State), Fence: u.Fence, Attempts: u.Attempts,
			Silent: seconds(u.Silent), Cause: string(u.Cause), Failure: u.Failure, Resources: u.Resources, Bytes: u.Bytes,
		})
	}
	return output
}

// someOf joins the first types.
func someOf(types []string) string {
	const most = 6
	if len(types) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(types[:most], ","), len(types)-most)
	}
	return strings.Join(types, ",")
}

func (a *app) printDetail(d ops.Detail) error {
	facts := [][]string{
		{"job", string(d.ID)}, {"state", fmt.Sprintf("%s, %d%%", d.State, d.Percent)}, {"owner", d.Owner},
		{"request", fmt.Sprintf("Group/%s: %s (%s)", d.Group, someOf(d.Types), d.Dialect)},
		{"created", instant(d.Created) + ", " + span(d.Age) + " ago"},
	}
	for _, fact := range []struct {
		name string
		at   time.Time
	}{{"snapshot", d.Snapshot}, {"finished", d.Finished}, {"expires", d.Expires}} {
		if !fact.at.IsZero() {
			facts = append(facts, []string{fact.name, instant(fact.at)})
		}
	}
	if !d.Snapshot.IsZero() {
		facts = append(facts, []string{"patients", decimal(d.Patients)})
	}
	if d.Failure != "" {
		facts = append(facts, []string{"failure", d.Failure})
	}
	for _, text := range d.Errors {
		facts = append(facts, []string{"error", text})
	}
	if err := a.printColumns(facts); err != nil {
		return err
	}
	if len(d.Progress) > 0 {
		rows := [][]string{{"type", "units", "done", "failed", "running", "resources", "bytes"}}
		for _, p := range d.Progress {
			rows = append(rows, []string{
				p.Type, strconv.Itoa(p.Units), strconv.Itoa(p.Done), strconv.Itoa(p.Failed), strconv.Itoa(p.Run),
				decimal(p.Resources), decimal(p.Bytes),
			})
		}
		if err := a.printBelow(rows); err != nil {
			return err
		}
	}
	if len(d.Units) == 0 {
		return nil
	}
	rows := [][]string{{"unit", "kind", "state", "fence", "failed attempts", "last heartbeat", "last cause"}}
	for _, u := range d.Units {
		heartbeat := "-"
		switch u.State {
		case ops.UnitDelayed:
			heartbeat = "retry in " + span(-u.Silent)
		case ops.UnitRunning, ops.UnitQueued:
			heartbeat = span(u.Silent) + " ago"
		default:
		}
		rows = append(rows, []string{
			string(u.ID), string(u.Kind), string(u.State), decimal(u.Fence), strconv.Itoa(u.Attempts), heartbeat,
			orDash(string(u.Cause)),
		})
	}
	return a.printBelow(rows)
}

// printBelow prints an empty line and a table.
func (a *app) printBelow(rows [][]string) error {
	if err := a.print("\n"); err != nil {
		return err
	}
	return a.printColumns(rows)
}

func (a *app) jobCancel(admin *adminFlags) *cobra.Command {
	return a.jobEnd(admin, "cancel", "Cancel a live or finished job and delete its files",
		`Cancel a job as its owner can: its owner gets 404 from then on, its units stop within seconds, and a scheduler deletes
its files and its record. The command asks for confirmation unless --yes.`,
		"Cancel job %s and delete all its files?", "cancelled job %s; a scheduler deletes its files",
		(*ops.Operator).Cancel)
}

func (a *app) jobPurge(admin *adminFlags) *cobra.Command {
	return a.jobEnd(admin, "purge", "Expire a finished job now and delete its files",
		`Expire a finished or failed job now: its owner gets 404 from then on, and a scheduler deletes its files and its record.
A live job is refused: cancel it instead. The command asks for confirmation unless --yes.`,
		"Delete job %s and all its files?", "job %s has expired; a scheduler deletes its files", (*ops.Operator).PurgeNow)
}

func (a *app) jobEnd(
	admin *adminFlags, name, short, long, question, done string,
	end func(*ops.Operator, context.Context, export.JobID) error,
) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.destroys(&cobra.Command{
		Use: name + " JOB", Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			if err := a.confirm(&flags, fmt.Sprintf(question, id)); err != nil {
				return err
			}
			return a.change(&flags, fmt.Sprintf(done, id), func(o *ops.Operator) error {
				return explainOps("job", end(o, ctx, id))
			})
		}),
	})
}
