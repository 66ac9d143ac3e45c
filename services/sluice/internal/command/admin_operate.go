package command

import (
	"bufio"
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

// operateFlags are those of the commands about jobs, units, the intake and workers.
type operateFlags struct {
	*adminFlags
	redis, caFile string
	yes           bool // do not ask
}

const operateHelp = `

The command talks to Redis: --redis, or the variable SLUICE_REDIS_URL or, for a file that holds it,
SLUICE_REDIS_URL_FILE.`

const changeHelp = operateHelp + ` It is recorded in the audit log before it is done: --audit-log, or
SLUICE_AUDIT_LOG, must name a file of its own for these commands, or stdout; SLUICE_AUDIT_KEY or SLUICE_AUDIT_KEY_FILE
is the key of its chain.`

// looks gives a command what it needs to look.
func (f *operateFlags) looks(cmd *cobra.Command) *cobra.Command {
	cmd.Long = strings.TrimSpace(cmd.Long) + operateHelp
	f.place(cmd)
	return askJSON(cmd, f.adminFlags)
}

// changes gives a command what it needs to change something.
func (f *operateFlags) changes(cmd *cobra.Command) *cobra.Command {
	cmd.Long = strings.TrimSpace(cmd.Long) + changeHelp
	f.place(cmd)
	return cmd
}

// place gives a command the flags that say where Redis is.
func (f *operateFlags) place(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.redis, "redis", "", "URL of Redis; default: the variable SLUICE_REDIS_URL")
	cmd.Flags().StringVar(&f.caFile, "ca-file", "",
		"authorities (PEM) beside the system's; default: the variable SLUICE_CA_FILE")
}

// destroys is changes for what cannot be undone: it asks before.
func (f *operateFlags) destroys(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask whether it is meant")
	return f.changes(cmd)
}

func (f *operateFlags) wiring() (config.Redis, error) {
	url, err := urlOf(f.redis, "--redis", "SLUICE_REDIS_URL", "Redis")
	if err != nil {
		return config.Redis{}, err
	}
	return config.Redis{Trust: config.Trust{CAFile: orVariable(f.caFile, "SLUICE_CA_FILE")}, URL: url}, nil
}

func orVariable(flag, name string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(name)
}

// look runs the work with an operator who changes nothing.
func (a *app) look(f *operateFlags, work func(o *ops.Operator) error) error {
	return a.operate(f, nil, work)
}

func (a *app) operate(f *operateFlags, log *audit.Log, work func(o *ops.Operator) error) (err error) {
	redis, err := f.wiring()
	if err != nil {
		return err
	}
	jobs, tasks, err := redis.Open()
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	operator, err := ops.New(ops.Parts{Jobs: jobs, Queue: tasks, Audit: log, Agent: whoami(), Now: a.now})
	if err != nil {
		return err
	}
	return work(operator)
}

// change runs the work with an operator who may change something, and then says what was done: on standard output, or
// on standard error when the audit log is there.
func (a *app) change(f *operateFlags, done string, work func(o *ops.Operator) error) error {
	if _, err := f.wiring(); err != nil { // before a log is begun for nothing
		return err
	}
	log, err := openAudit(f.audit)
	if err != nil {
		return err
	}
	if log == nil {
		return usage("--audit-log or SLUICE_AUDIT_LOG must say where the change is recorded: a file, or stdout")
	}
	err = a.operate(f, log, work)
	if err = errors.Join(err, log.Close()); err != nil {
		return err
	}
	if audit.IsStdout(orVariable(f.audit, auditVariable)) {
		a.say("%s\n", done)
		return nil
	}
	return a.print(done + "\n")
}

const auditVariable = "SLUICE_AUDIT_LOG"

// openAudit opens the audit log that the flag or else the variable names; nil when neither does. A file is written
// through to the disk: there is one event in the life of this process.
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
		return nil, usageError{err}
	}
	return settings.Open("sluice admin", prometheus.NewRegistry())
}

// recorded puts a change of a command that needs no audit log on record, when one is named, and then makes it. What
// cannot be recorded is not done; what then fails is recorded as failed.
func recorded(flags *adminFlags, what string, step func() error) (err error) {
	log, err := openAudit(flags.audit)
	if err != nil {
		return err
	}
	if log == nil {
		return step()
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	event := audit.Event{Action: audit.Admin, Outcome: audit.Success, Agent: whoami(), Target: what}
	if err := log.Record(event); err != nil {
		return err
	}
	if err := step(); err != nil {
		event.Outcome, event.Reason = audit.Failed, "the step failed"
		return errors.Join(err, log.Record(event))
	}
	return nil
}

// whoami is who runs the command, as the operating system knows it.
func whoami() export.Owner {
	name := strconv.Itoa(os.Getuid()) // of an image without a list of users
	if known, err := user.Current(); err == nil && known.Username != "" {
		name = known.Username
	}
	return export.Owner{Issuer: "urn:sluice:os-user", Subject: name}
}

// confirm asks whether it is meant, unless --yes says so.
func (a *app) confirm(f *operateFlags, question string) error {
	if f.yes {
		return nil
	}
	a.say("%s Type yes to go on: ", question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && answer == "" {
		a.say("\n")
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("it was not confirmed, and nothing was changed; --yes does not ask")
	}
	return nil
}

// jobArgument reads the argument JOB.
func jobArgument(text string) (export.JobID, error) {
	id, err := export.ParseJobID(text)
	if err != nil {
		return "", usage("JOB is not the id of a job: 26 of the characters a-z and 2-7")
	}
	return id, nil
}

// told says in an operator's words what an answer about a job or its unit means.
func told(what string, err error) error {
	switch {
	case errors.Is(err, export.ErrNotFound):
		return fmt.Errorf("there is no such %s: %w", what, err)
	case errors.Is(err, export.ErrNotLive):
		return fmt.Errorf("the job has ended: %w", err)
	}
	return err
}

// span writes a length of time as far as an operator wants to know it.
func span(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(abs.Hours())%24)
	case abs >= time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(abs.Minutes())%60)
	case abs >= time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(abs.Seconds())%60)
	case abs >= 10*time.Second:
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// moment is an instant as JSON, nothing for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// seconds is a length of time as JSON.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// looking is the work of a command on an operator that changes nothing.
func (a *app) looking(f *operateFlags, work func(ctx context.Context, o *ops.Operator, args []string) error) func(
	*cobra.Command, []string) error {
	return a.run(func(ctx context.Context, args []string) error {
		return a.look(f, func(o *ops.Operator) error { return work(ctx, o, args) })
	})
}
