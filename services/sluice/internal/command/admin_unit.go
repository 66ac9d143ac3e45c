package command

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) unit() *cobra.Command {
	return parent("unit", "Retry or fail a unit of a job",
		"Retry or fail a unit of a job (docs/operating.md). sluice admin job show lists the units.",
		a.unitRetry(), a.unitFail())
}

func (a *app) unitRetry() *cobra.Command {
	return a.changing(&cobra.Command{
		Use:   "retry JOB UNIT",
		Short: "Run a unit again now",
		Long: `Run a unit again now, with a full number of attempts: a failed unit, one that makes no progress, or one that
waits for its retry. Results of the previous worker are discarded. The command is refused for a unit that is done, and
when a later stage that depends on the unit has started: the references or the manifest.`,
		Args: cobra.MatchAll(cobra.ExactArgs(2), aJob),
	}, "job or unit", "", "unit %[2]s of job %[1]s is queued again",
		func(ctx context.Context, o *ops.Operator, args []string) error {
			return o.RetryUnit(ctx, export.JobID(args[0]), export.UnitID(args[1]))
		})
}

func (a *app) unitFail() *cobra.Command {
	return a.changing(&cobra.Command{
		Use:   "fail JOB UNIT",
		Short: "Fail a unit: the job continues without it",
		Long: `Fail an open unit: it becomes an entry of the manifest's error list, and the rest of the job continues. The
command is refused for the plan and the seal, which every export needs: cancel the job instead. It asks for confirmation
unless --yes.`,
		Args: cobra.MatchAll(cobra.ExactArgs(2), aJob),
	}, "job or unit", "Fail unit %[2]s of job %[1]s? Its data will be missing.", "unit %[2]s of job %[1]s has failed",
		func(ctx context.Context, o *ops.Operator, args []string) error {
			return o.GiveUpUnit(ctx, export.JobID(args[0]), export.UnitID(args[1]))
		})
}
