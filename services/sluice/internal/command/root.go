// Package command is the command line of sluice. Standard output gets results only; everything else goes to standard
// error.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
)

// The exit codes.
const (
	ExitGood    = 0
	ExitFailure = 1
	ExitUsage   = 2 // invalid usage
	ExitPartial = 3 // the export finished, but its error list is not empty
)

const exitHelp = `Exit codes:
  0  success
  1  failure; the reason is on standard error
  2  invalid usage
  3  the export finished, but its error list is not empty`

// errPartial results in ExitPartial. The missing data has already been reported.
var errPartial = errors.New("the export is not complete")

// usageError is invalid usage that the flag parser does not detect.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// app holds the state that the commands share.
type app struct {
	stdout, stderr io.Writer
	running        bool // the command line was parsed
	flags          sharedFlags
}

// sharedFlags are the flags that several commands have, with the values of the command that runs.
type sharedFlags struct {
	database, redis string // URLs
	caFile          string
	audit           string // file of the audit log, or stdout
	json            bool
	yes             bool // no confirmation
}

// Run runs one command line, without the program's name, and returns the exit code. It returns soon after ctx is done.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "Export, load and check FHIR bulk data",
		Long:          "sluice exports, loads and checks FHIR bulk data, and operates a Sluice deployment.\n\n" + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	//nolint:contextcheck // commands take their context from cobra, which gets it below
	root.AddCommand(a.export(), a.token(), a.load(), a.synth(), a.verify(), a.version(), a.health(), a.admin())
	complete(root)

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

// complete makes commands without Args take no arguments, and those without RunE require a subcommand.
func complete(cmd *cobra.Command) {
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	if cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return usage("missing command: see %s --help", cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		complete(sub)
	}
}

// run wraps the work of a command. An error before the work starts is a usage error.
func (a *app) run(work func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.running = true
		return work(cmd.Context(), args)
	}
}

func require(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

// say writes to standard error. Write errors are ignored, because they cannot be reported anywhere else.
func (a *app) say(format string, args ...any) { _, _ = fmt.Fprintf(a.stderr, format, args...) }

func (a *app) print(text string) error {
	if _, err := io.WriteString(a.stdout, text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: a.run(func(context.Context, []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return a.print("sluice, unknown version\n")
			}
			parts := []string{"sluice", info.Main.Version}
			for _, setting := range info.Settings {
				switch {
				case setting.Key == "vcs.revision":
					parts = append(parts, setting.Value[:min(len(setting.Value), 12)])
				case setting.Key == "vcs.modified" && setting.Value == "true":
					parts = append(parts, "modified")
				}
			}
			return a.print(strings.Join(append(parts, info.GoVersion), " ") + "\n")
		}),
	}
}

// health is for health checks in images without an HTTP client, such as that of the object store.
func (a *app) health() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Check the health of a server",
		Long: `Request a URL such as http://127.0.0.1:9000/minio/health/cluster and succeed if the answer is 200. The command
prints nothing on success, and follows no redirect.`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, urls []string) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return health.Get(ctx, &http.Transport{DisableKeepAlives: true}, urls[0])
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "give up after this time")
	return cmd
}
