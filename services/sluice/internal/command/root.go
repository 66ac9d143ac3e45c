package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	ExitGood    = 0
	ExitFailure = 1
	ExitUsage   = 2 // the command line makes no sense
	ExitPartial = 3 // the export finished, but its error list is not empty
)

const exitHelp = `Exit codes:
  0  all went well
  1  it failed; the reason is on standard error
  2  the command line makes no sense
  3  the export finished, but the server could not produce everything (its error list is not empty)`

// errPartial asks for ExitPartial. What is missing was said already.
var errPartial = errors.New("the export is not complete")

// usageError is a mistake on the command line that flags alone do not show.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// app is what the commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	running        bool // the command line was understood
}

// Run runs one command line, without the program's name, and returns the exit code. It ends soon after ctx is done.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdin: os.Stdin, stdout: stdout, stderr: stderr, now: time.Now}
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "Export FHIR data in bulk, and make and check such data",
		Long:          "sluice exports FHIR data in bulk, and makes and checks such data.\n\n" + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("a command is needed: see sluice --help")
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	//nolint:contextcheck // commands take their context from cobra, which gets it below
	root.AddCommand(a.export(), a.token(), a.load(), a.synth(), a.verify(), a.version(), a.health(), a.admin())

	err := root.ExecuteContext(ctx)
	var wrong usageError
	switch {
	case err == nil:
		return ExitGood
	case errors.Is(err, errPartial):
		return ExitPartial
	case !a.running || errors.As(err, &wrong):
		a.say("sluice: %v\nSee sluice --help.\n", err)
		return ExitUsage
	}
	a.say("sluice: %v\n", err)
	return ExitFailure
}

// run wraps the work of a command: an error before it is one of usage.
func (a *app) run(work func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.running = true
		return work(cmd.Context(), args)
	}
}

// say writes to standard error. When that cannot be written to, there is nobody to tell.
func (a *app) say(format string, args ...any) { _, _ = fmt.Fprintf(a.stderr, format, args...) }

// print writes a result.
func (a *app) print(text string) error {
	if _, err := io.WriteString(a.stdout, text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
