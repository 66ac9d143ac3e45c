package command

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) kickoffs(admin *adminFlags) *cobra.Command {
	return parent("kickoffs", "Pause and resume kick-offs",
		`Pause and resume kick-offs on all replicas of the API (docs/operating.md). While they are paused, a kick-off is
answered with 503 and Retry-After. Jobs, status, files and cancel are not affected.`,
		a.kickoffsShow(admin), a.kickoffsPause(admin), a.kickoffsResume(admin))
}

// intake is the old name of kickoffs. It is deprecated and will be removed in the next release.
func (a *app) intake(admin *adminFlags) *cobra.Command {
	cmd := a.kickoffs(admin)
	cmd.Use, cmd.Hidden = "intake", true
	cmd.PersistentPreRun = func(*cobra.Command, []string) {
		a.say("sluice admin intake is deprecated: use sluice admin kickoffs\n")
	}
	return cmd
}

func (a *app) kickoffsShow(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.reads(&cobra.Command{
		Use:     "show",
		Aliases: []string{"status"},
		Short:   "Show whether kick-offs are paused",
		Long:    "Show whether kick-offs are paused, and if so since when, until when and why.",
		Args:    cobra.NoArgs,
		RunE: a.reading(&flags, func(ctx context.Context, o *ops.Operator, _ []string) error {
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
			until := "resumed"
			if !intake.Pause.Until.IsZero() {
				until = instant(intake.Pause.Until)
			}
			return a.printColumns([][]string{
				{"kick-offs", "since", "until", "reason"},
				{"paused", instant(intake.Pause.Since), until, orDash(printable(intake.Pause.Reason))},
			})
		}),
	})
}

func (a *app) kickoffsPause(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	var reason string
	var last time.Duration
	cmd := flags.changes(&cobra.Command{
		Use:   "pause --reason TEXT [--for DURATION]",
		Short: "Pause kick-offs",
		Long: `Pause kick-offs for the duration of --for or, without it, until sluice admin kickoffs resume. The reason is for
operators and the audit log; clients do not see it. It must not name a patient.`,
		Args: cobra.NoArgs,
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
				until = a.now().Add(last)
				done = "kick-offs are paused until " + instant(until)
			}
			return a.change(&flags, done, func(o *ops.Operator) error { return o.PauseIntake(ctx, reason, until) })
		}),
	})
	cmd.Flags().StringVar(&reason, "reason", "", "the reason, one line of text")
	cmd.Flags().DurationVar(&last, "for", 0, "duration of the pause, such as 30m")
	require(cmd, "reason")
	return cmd
}

func (a *app) kickoffsResume(admin *adminFlags) *cobra.Command {
	flags := redisFlags{adminFlags: admin}
	return flags.changes(&cobra.Command{
		Use:   "resume",
		Short: "Resume kick-offs",
		Long:  "Resume kick-offs. It is not an error if they are not paused.",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.change(&flags, "kick-offs are accepted", func(o *ops.Operator) error { return o.ResumeIntake(ctx) })
		}),
	})
}
