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

// redisFlags are the flags of the commands for jobs, units, kick-offs and workers.
type redisFlags struct {
	*adminFlags
	redis, caFile string
	yes           bool // no confirmation
}

const redisHelp = `

The command uses Redis: --redis, SLUICE_REDIS_URL, or the content of the file SLUICE_REDIS_URL_FILE.`

const changeHelp = redisHelp + ` The change is
recorded in the audit log first: --audit-log or SLUICE_AUDIT_LOG must name a file that no service writes, or stdout.
SLUICE_AUDIT_KEY or SLUICE_AUDIT_KEY_FILE is the key of its chain.`

// reads adds the flags and help of a command that changes nothing.
func (f *redisFlags) reads(cmd *cobra.Command) *cobra.Command {
	return withJSON(f.add(cmd, redisHelp), f.adminFlags)
}

// changes adds the flags and help of a command that changes something.
func (f *redisFlags) changes(cmd *cobra.Command) *cobra.Command { return f.add(cmd, changeHelp) }

// destroys is changes for a command that cannot be undone and asks for confirmation.
func (f *redisFlags) destroys(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask for confirmation")
	return f.changes(cmd)
}

func (f *redisFlags) add(cmd *cobra.Command, help string) *cobra.Command {
	cmd.Long = strings.TrimSpace(cmd.Long) + help
	cmd.Flags().StringVar(&f.redis, "redis", "", "URL of Redis; default: SLUICE_REDIS_URL")
	cmd.Flags().StringVar(&f.caFile, "ca-file", "", "additional certificate authorities (PEM); default: SLUICE_CA_FILE")
	return cmd
}

func (f *redisFlags) redisConfig() (config.Redis, error) {
	url, err := urlOf(f.redis, "--redis", "SLUICE_REDIS_URL")
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

// withOperator runs the work with an operator, who can change something only with an audit log.
func (a *app) withOperator(f *redisFlags, log *audit.Log, work func(o *ops.Operator) error) (err error) {
	redis, err := f.redisConfig()
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

// change runs the work with an operator and prints the result: on standard output, or on standard error if the audit
// log is on standard output.
func (a *app) change(f *redisFlags, done string, work func(o *ops.Operator) error) error {
	if _, err := f.redisConfig(); err != nil { // before the audit log is opened
		return err
	}
	log, err := openAudit(f.audit)
	if err != nil {
		return err
	}
	if log == nil {
		return usage("--audit-log or SLUICE_AUDIT_LOG is required: a file, or stdout")
	}
	err = a.withOperator(f, log, work)
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

// openAudit opens the audit log of the flag or the variable; nil if neither is set. A file is flushed after every event.
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

// recorded records a change in the audit log, if there is one, and makes it. A change that cannot be recorded is not
// made; one that fails is recorded as failed.
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

// whoami returns the user of the operating system.
func whoami() export.Owner {
	name := strconv.Itoa(os.Getuid()) // in an image without /etc/passwd
	if known, err := user.Current(); err == nil && known.Username != "" {
		name = known.Username
	}
	return export.Owner{Issuer: "urn:sluice:os-user", Subject: name}
}

// confirm asks for confirmation, unless --yes.
func (a *app) confirm(f *redisFlags, question string) error {
	if f.yes {
		return nil
	}
	a.say("%s Type yes to continue: ", question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && answer == "" {
		a.say("\n")
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("not confirmed; nothing was changed (--yes skips the question)")
	}
	return nil
}

// jobArgument parses the argument JOB.
func jobArgument(text string) (export.JobID, error) {
	id, err := export.ParseJobID(text)
	if err != nil {
		return "", usage("JOB is not a job id: 26 characters of a-z and 2-7")
	}
	return id, nil
}

// explainOps adds an explanation to an error of an operator's step on the named thing.
func explainOps(what string, err error) error {
	switch {
	case errors.Is(err, export.ErrNotFound):
		return fmt.Errorf("no such %s: %w", what, err)
	case errors.Is(err, export.ErrNotLive):
		return fmt.Errorf("the job has ended: %w", err)
	}
	return err
}

// span formats a duration with at most two units.
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

// moment is an instant for JSON, nil for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// seconds is a duration for JSON.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// reading is the RunE of a command that changes nothing.
func (a *app) reading(f *redisFlags, work func(ctx context.Context, o *ops.Operator, args []string) error) func(
	*cobra.Command, []string) error {
	return a.run(func(ctx context.Context, args []string) error {
		return a.withOperator(f, nil, func(o *ops.Operator) error { return work(ctx, o, args) })
	})
}
