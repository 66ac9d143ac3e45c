package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) unit(admin *adminFlags) *cobra.Command {
	return family("unit", "Retry a unit of a job, or give it up",
		"Unit retries a unit of a job or gives it up (docs/operating.md). See sluice admin job show for the units.",
		a.unitRetry(admin), a.unitFail(admin))
}

func (a *app) unitRetry(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	return flags.changes(&cobra.Command{
		Use:   "retry JOB UNIT",
		Short: "Run a unit again at once, elsewhere",
		Long: `Retry runs a unit again at once, with all its attempts: one that was given up, one that its worker does not get on
with, or one that waits to be tried again. What the worker before brings for it counts no more. It is refused for a
unit that is done, and when what builds on the unit has begun: the references or the manifest.`,
		Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			done := fmt.Sprintf("unit %s of job %s is in the queue again", args[1], id)
			return a.change(&flags, done, func(o *ops.Operator) error {
				return told("job or unit", o.RetryUnit(ctx, id, export.UnitID(args[1])))
			})
		}),
	})
}

func (a *app) unitFail(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	return flags.destroys(&cobra.Command{
		Use:   "fail JOB UNIT",
		Short: "Give a unit up: the job goes on without it",
		Long: `Fail gives an open unit up: it becomes an entry of the manifest's error list, and the rest of the job goes on. It
is refused for the plan and the seal, without which there is no export: cancel the job. It asks before; --yes does not.`,
		Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := jobArgument(args[0])
			if err != nil {
				return err
			}
			question := fmt.Sprintf("Give unit %s of job %s up, whose data will be missing?", printable(args[1]), id)
			if err := a.confirm(&flags, question); err != nil {
				return err
			}
			done := fmt.Sprintf("unit %s of job %s was given up", args[1], id)
			return a.change(&flags, done, func(o *ops.Operator) error {
				return told("job or unit", o.FailUnit(ctx, id, export.UnitID(args[1])))
			})
		}),
	})
}
