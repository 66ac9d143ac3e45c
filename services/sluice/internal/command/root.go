// Package command is the command line of sluice. Standard output gets results only; everything else goes to standard
// error.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// The exit codes.
const (
	ExitGood        = 0
	ExitFailure     = 1
	ExitUsage       = 2   // invalid usage
	ExitPartial     = 3   // finished, but some data is missing
	ExitInterrupted = 130 // as of a shell: 128 and the number of SIGINT
)

const exitHelp = `Exit codes:
  0    success, also when data was left out by design
  1    failure; the reason is on standard error
  2    usage error
  3    finished, but some data is missing: an export has errors or warnings
  130  interrupted`

// errPartial results in ExitPartial. The missing data has already been reported.
var errPartial = errors.New("the export is not complete")

// usageError is invalid usage that the flag parser does not detect.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// app holds the state that the commands share.
type app struct {
	stdout, stderr io.Writer
	args           []string // the command line
	running        bool     // the command line was parsed
	helpErr        error    // of a request for help about no command
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
	a := &app{stdout: stdout, stderr: stderr, args: args}
	redisclient.LogTo(slog.New(slog.DiscardHandler)) // the errors of the commands have the same text
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "Export, load and check FHIR bulk data",
		Long:          "sluice exports, loads and checks FHIR bulk data, and operates a Sluice deployment.\n\n" + exitHelp,
		Version:       buildinfo.Of().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("sluice {{.Version}}\n")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	//nolint:contextcheck // commands take their context from cobra, which gets it below
	root.AddCommand(a.export(), a.status(), a.cancel(), a.verify(), a.token(), a.load(), a.synth(), a.health(), a.admin(),
		a.version())
	root.SetHelpCommand(help())
	root.InitDefaultHelpCmd()
	complete(root)
	show := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if others := cmd.Flags().Args(); cmd.HasSubCommands() && len(others) > 0 {
			a.helpErr = unknown(cmd, others[0])
			return
		}
		show(cmd, args)
	})
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if text := err.Error(); strings.Contains(text, "invalid duration") || strings.Contains(text, "in duration") {
			return usage("%w: such as 90s, 10m or 2h", err)
		}
		return usageError{err}
	})

	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = a.helpErr
	}
	var wrong usageError
	switch {
	case err == nil:
		return ExitGood
	case errors.Is(err, errPartial):
		return ExitPartial
	case !a.running || errors.As(err, &wrong):
		a.say("sluice: %v\nSee %s --help.\n", err, cmd.CommandPath())
		return ExitUsage
	case errors.Is(ctx.Err(), context.Canceled):
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted") // the rest of the error only repeats it
		}
		a.say("sluice: %v\n", err)
		return ExitInterrupted
	}
	a.say("sluice: %v\n", err)
	return ExitFailure
}

// complete makes commands without Args take no arguments, and those without RunE require a subcommand. The error of a
// wrong number of arguments shows the usage.
func complete(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			var told usageError
			if err == nil || errors.As(err, &told) {
				return err
			}
			return usage("%w: %s", err, cmd.UseLine())
		}
	} else {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return nil
			case cmd.HasSubCommands():
				return unknown(cmd, args[0])
			}
			return usage("unexpected argument %q", args[0])
		}
	}
	if cmd.RunE == nil {
		cmd.RunE = func(*cobra.Command, []string) error {
			return usage("missing command")
		}
	}
	for _, sub := range cmd.Commands() {
		complete(sub)
	}
}

// unknown is the error of a name that is no command below cmd.
func unknown(cmd *cobra.Command, name string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return usage("unknown command %q for %q%s", name, cmd.CommandPath(), didYouMean(name, names))
}

// help replaces cobra's command, which succeeds for an unknown command.
func help() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]...",
		Short: "Help about any command",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknown(target, args[len(args)-max(len(rest), 1)])
			}
			return target.Help()
		},
	}
}

// exactly makes a command take these arguments, named as in its Use.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s is missing", names[len(args)])
		case len(args) > len(names):
			return usage("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// didYouMean returns a question about the known name that is nearest to an unknown one, "" when none is near.
func didYouMean(name string, known []string) string {
	best, least := "", 3 // edits; more is another word
	for _, candidate := range known {
		n := edits(strings.ToLower(name), strings.ToLower(candidate))
		if strings.HasPrefix(candidate, name) {
			n = min(n, 1)
		}
		if n < least && n < len(name) {
			best, least = candidate, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// edits returns the number of single-byte edits between two texts (Levenshtein).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
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
		defined(cmd.MarkFlagRequired(name))
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
	return a.withJSON(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: a.run(func(context.Context, []string) error {
			if a.flags.json {
				return a.printJSON(buildinfo.Of())
			}
			return a.print("sluice " + buildinfo.Of().String() + "\n")
		}),
	})
}

// withoutSecrets returns a URL as it may be printed.
func withoutSecrets(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "the URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// health is for health checks in images without an HTTP client, such as that of the object store.
func (a *app) health() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Check whether a server is healthy",
		Long: `Request a URL and succeed if the answer is 200. The command prints nothing on success, except with --json, and
follows no redirect.`,
		Example: `  sluice health http://127.0.0.1:8090/readyz
  sluice health --timeout 10s http://127.0.0.1:9000/minio/health/cluster`,
		Args: exactly("URL"),
		RunE: a.run(func(ctx context.Context, urls []string) error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			if err := health.Get(ctx, &http.Transport{DisableKeepAlives: true}, urls[0]); err != nil {
				return fmt.Errorf("%s: %w", withoutSecrets(urls[0]), err)
			}
			if a.flags.json {
				return a.printJSON(map[string]any{"url": urls[0], "healthy": true})
			}
			return nil
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "give up after this time, such as 10s")
	cmd.Flags().BoolVar(&a.flags.json, "json", false, "print the result as JSON")
	return cmd
}
