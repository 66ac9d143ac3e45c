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
	cmd.Flags().StringVar(&a.flags.caFile, "ca-file", "", "additional certificate authorities (PEM); default: SLUICE_CA_FILE")
	return cmd
}

// reading completes a command that changes nothing.
func (a *app) reading(
	cmd *cobra.Command, work func(ctx context.Context, o *ops.Operator, args []string) error,
) *cobra.Command {
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		return a.withOperator(nil, func(o *ops.Operator) error { return work(ctx, o, args) })
	})
	return a.withJSON(a.withRedis(cmd, redisHelp))
}

// changing completes a command that changes what its arguments name. The question, which is asked first unless it is
// empty, and done are formats of the arguments.
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
	return config.Redis{Trust: config.Trust{CAFile: orVariable(a.flags.caFile, "SLUICE_CA_FILE")}, URL: url}, err
}

// withOperator runs the work with an operator, who can change something only with an audit log.
func (a *app) withOperator(log *audit.Log, work func(o *ops.Operator) error) (err error) {
	redis, err := a.redisConfig()
	if err != nil {
		return err
	}
	jobs, tasks, err := redis.Open()
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	operator, err := ops.New(ops.Deps{Jobs: jobs, Queue: tasks, Audit: log, Agent: whoami(), Now: a.now})
	if err != nil {
		return err
	}
	return work(operator)
}

// change runs the work with an operator and prints the result: on standard output, or on standard error if the audit
// log is on standard output.
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
	if audit.IsStdout(orVariable(a.flags.audit, auditVariable)) {
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

// recorded records a change in the audit log, if there is one, makes it, and prints what was done. A change that cannot
// be recorded is not made; one that fails is recorded as failed.
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
	return a.print(done)
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
func (a *app) confirm(question string) error {
	if a.flags.yes {
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

// aJob checks that the first argument is the id of a job.
func aJob(_ *cobra.Command, args []string) error {
	if _, err := export.ParseJobID(args[0]); err != nil {
		return usage("JOB is not a job id: 26 characters of a-z and 2-7")
	}
	return nil
}
