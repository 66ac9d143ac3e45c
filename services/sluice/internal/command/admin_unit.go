package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) unit(admin *adminFlags) *cobra.Command {
	return parent("unit", "Retry or fail a unit of a job",
		"Retry or fail a unit of a job (docs/operating.md). sluice admin job show lists the units.",
		a.unitRetry(admin), a.unitFail(admin))
}

func (a *app) unitRetry(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.changes(&cobra.Command{
		Use:   "retry JOB UNIT",
		Short: "Run a unit again now",
		Long: `Run a unit again now, with a full number of attempts: a failed unit, one that makes no progress, or one that
waits for its retry. Results of the previous worker are discarded. The command is refused for a unit that is done, and
when a later stage that depends on the unit has started: the references or the manifest.`,
		Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			done := fmt.Sprintf("unit %s of job %s is queued again", args[1], id)
			return a.change(&flags, done, func(o *ops.Operator) error {
				return explainOps("job or unit", o.RetryUnit(ctx, id, export.UnitID(args[1])))
			})
		}),
	})
}

func (a *app) unitFail(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.destroys(&cobra.Command{
		Use:   "fail JOB UNIT",
		Short: "Fail a unit: the job continues without it",
		Long: `Fail an open unit: it becomes an entry of the manifest's error list, and the rest of the job continues. The
command is refused for the plan and the seal, which every export needs: cancel the job instead. It asks for confirmation
unless --yes.`,
		Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			question := fmt.Sprintf("Fail unit %s of job %s? Its data will be missing.", printable(args[1]), id)
			if err := a.confirm(&flags, question); err != nil {
				return err
			}
			done := fmt.Sprintf("unit %s of job %s has failed", args[1], id)
			return a.change(&flags, done, func(o *ops.Operator) error {
				return explainOps("job or unit", o.FailUnit(ctx, id, export.UnitID(args[1])))
			})
		}),
	})
}
