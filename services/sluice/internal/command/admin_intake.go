package command

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) intake(admin *adminFlags) *cobra.Command {
	return family("intake", "Pause and resume the intake of new jobs",
		`Intake pauses and resumes the intake of new jobs over all replicas of the API (docs/operating.md): kick-offs are
answered 503 with Retry-After. Jobs at work go on, and so do status, files and cancel.`,
		a.intakeStatus(admin), a.intakePause(admin), a.intakeResume(admin))
}

func (a *app) intakeStatus(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	return flags.looks(&cobra.Command{
		Use:   "status",
		Short: "Say whether new jobs are taken",
		Long:  "Status says whether new jobs are taken, and if not since when, until when and why.",
		Args:  cobra.NoArgs,
		RunE: a.looking(&flags, func(ctx context.Context, o *ops.Operator, _ []string) error {
			intake, err := o.Intake(ctx)
			if err != nil {
				return err
			}
			if flags.json {
				return a.printJSON(struct {
					Open   bool       `json:"open"`
					Since  *time.Time `json:"since,omitempty"`
					Until  *time.Time `json:"until,omitempty"`
					Reason string     `json:"reason,omitempty"`
				}{intake.Open, moment(intake.Pause.Since), moment(intake.Pause.Until), intake.Pause.Reason})
			}
			if intake.Open {
				return a.print("open\n")
			}
			until := "until it is resumed"
			if !intake.Pause.Until.IsZero() {
				until = instant(intake.Pause.Until)
			}
			return a.printColumns([][]string{
				{"intake", "since", "until", "reason"},
				{"paused", instant(intake.Pause.Since), until, orDash(printable(intake.Pause.Reason))},
			})
		}),
	})
}

func (a *app) intakePause(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	var reason string
	var last time.Duration
	cmd := flags.changes(&cobra.Command{
		Use:   "pause --reason TEXT [--for DURATION]",
		Short: "Take no new jobs",
		Long: `Pause has kick-offs refused until the time is over or, without --for, until sluice admin intake resume. The reason
is for operators and the audit log; clients do not see it. It must not name a patient.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if err := ops.CheckReason(reason); err != nil {
				return usage("--reason: %w", err)
			}
			if last < 0 {
				return usage("--for must not be below 0")
			}
			var until time.Time
			done := "the intake is paused until it is resumed"
			if last > 0 {
				until = a.now().Add(last)
				done = "the intake is paused until " + instant(until)
			}
			return a.change(&flags, done, func(o *ops.Operator) error { return o.PauseIntake(ctx, reason, until) })
		}),
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a line of text")
	cmd.Flags().DurationVar(&last, "for", 0, "how long, such as 30m")
	require(cmd, "reason")
	return cmd
}

func (a *app) intakeResume(admin *adminFlags) *cobra.Command {
	flags := operateFlags{adminFlags: admin}
	return flags.changes(&cobra.Command{
		Use:   "resume",
		Short: "Take new jobs again",
		Long:  "Resume has new jobs taken again. It may be done when the intake is open.",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.change(&flags, "the intake is open", func(o *ops.Operator) error { return o.ResumeIntake(ctx) })
		}),
	})
}
