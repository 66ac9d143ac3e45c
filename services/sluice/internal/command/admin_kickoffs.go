package command

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/services/ops"
)

func (a *app) kickoffs() *cobra.Command {
	return parent("kickoffs", "Pause and resume kick-offs",
		`Pause and resume kick-offs on all replicas of the API (docs/operating.md). While they are paused, a kick-off is
answered with 503 and Retry-After. Jobs, status, files and cancel are not affected.`,
		a.kickoffsShow(), a.kickoffsPause(), a.kickoffsResume())
}

// intake is the old name of kickoffs. It is deprecated and will be removed in the next release.
func (a *app) intake() *cobra.Command {
	cmd := a.kickoffs()
	cmd.Use, cmd.Hidden = "intake", true
	cmd.PersistentPreRun = func(*cobra.Command, []string) {
		a.say("sluice admin intake is deprecated: use sluice admin kickoffs\n")
	}
	return cmd
}

func (a *app) kickoffsShow() *cobra.Command {
	return a.reading(&cobra.Command{
		Use:     "show",
		Aliases: []string{"status"},
		Short:   "Show whether kick-offs are paused",
		Long:    "Show whether kick-offs are paused, and if so since when, until when and why.",
	}, func(ctx context.Context, o *ops.Operator, _ []string) error {
		kickoffs, err := o.Kickoffs(ctx)
		if err != nil {
			return err
		}
		if kickoffs.Open && !a.flags.json {
			return a.print("open\n")
		}
		var until any = "resumed"
		if !kickoffs.Until.IsZero() {
			until = kickoffs.Until
		}
		return a.show(kickoffs, []row{
			{"kick-offs", "since", "until", "reason"},
			{"paused", kickoffs.Since, until, cmp.Or(printable(kickoffs.Reason), "-")},
		})
	})
}

func (a *app) kickoffsPause() *cobra.Command {
	var reason string
	var last time.Duration
	cmd := a.withRedis(&cobra.Command{
		Use:   "pause --reason TEXT [--for DURATION]",
		Short: "Pause kick-offs",
		Long: `Pause kick-offs for the duration of --for or, without it, until sluice admin kickoffs resume. The reason is for
operators and the audit log; clients do not see it. It must not name a patient.`,
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
			return a.change(done, func(o *ops.Operator) error { return o.PauseKickoffs(ctx, reason, until) })
		}),
	}, changeHelp)
	cmd.Flags().StringVar(&reason, "reason", "", "the reason, one line of text")
	cmd.Flags().DurationVar(&last, "for", 0, "duration of the pause, such as 30m")
	require(cmd, "reason")
	return cmd
}

func (a *app) kickoffsResume() *cobra.Command {
	return a.changing(&cobra.Command{
		Use:   "resume",
		Short: "Resume kick-offs",
		Long:  "Resume kick-offs. It is not an error if they are not paused.",
	}, "", "", "kick-offs are accepted", func(ctx context.Context, o *ops.Operator, _ []string) error {
		return o.ResumeKickoffs(ctx)
	})
}
