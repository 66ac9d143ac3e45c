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
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
  3    finished, but some data is missing: export, if a file of errors has an issue that is not for information only;
       load, if something was left out or could not be read
  130  interrupted`

// errPartial results in ExitPartial. The missing data has already been reported.
var errPartial = errors.New("the export is not complete")

// usageError is invalid usage that the flag parser does not detect.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// app holds the state that the commands share.
type app struct {
	stdout, stderr io.Writer
	program        string   // as it was called
	args           []string // the command line, without the program
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

// Run runs one command line, which begins with the program, and returns the exit code. It returns soon after ctx is done.
func Run(ctx context.Context, line []string, stdout, stderr io.Writer) int {
	args := line[1:]
	a := &app{stdout: stdout, stderr: stderr, program: line[0], args: args}
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
	// A command with subcommands does nothing by itself.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}",
		"{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	//nolint:contextcheck // commands take their context from cobra, which gets it below
	root.AddCommand(a.export(), a.status(), a.cancel(), a.verify(), a.token(), a.load(), a.synth(), a.health(), a.admin(),
		a.version())
	root.SetHelpCommand(help())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	complete(root)
	show := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if others := cmd.Flags().Args(); cmd.HasSubCommands() && len(others) > 0 {
			a.helpErr = unknown(cmd, others[0])
			return
		}
		show(cmd, args)
	})
	root.SetFlagErrorFunc(wrongFlag)

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

// complete makes commands without Args take no arguments, and those without RunE require a subcommand. It names the
// required flags that are missing.
func complete(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil || cmd.HasSubCommands() {
		check = func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return nil
			case cmd.HasSubCommands():
				return unknown(cmd, args[0])
			}
			return usage("unexpected argument %q", args[0])
		}
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		return missingFlags(cmd)
	}
	if cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(*cobra.Command, []string) error {
			return usage("missing command")
		}
	}
	for _, sub := range cmd.Commands() {
		complete(sub)
	}
}

// missingFlags returns an error that names the required flags that are not given.
func missingFlags(cmd *cobra.Command) error {
	var missing []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if _, required := f.Annotations[cobra.BashCompOneRequiredFlag]; required && !f.Changed {
			missing = append(missing, "--"+f.Name)
		}
	})
	switch len(missing) {
	case 0:
		return nil
	case 1:
		return usage("%s is required", missing[0])
	}
	return usage("%s are required", strings.Join(missing, " and "))
}

// wrongFlag is the error of a flag that cannot be parsed.
func wrongFlag(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		return unknownFlag(cmd, unknown.GetSpecifiedName())
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return usageError{err}
	}
	name, value := "--"+invalid.GetFlag().Name, invalid.GetValue()
	switch invalid.GetFlag().Value.Type() {
	case "duration":
		return usage("%s must be a number with a unit, such as 90s, 10m or 168h, not %q", name, value)
	case "int", "int64", "uint64":
		return usage("%s must be a whole number, not %q", name, value)
	case "bool":
		return usage("%s must be true or false, not %q", name, value)
	}
	return usageError{err}
}

// unknownFlag is the error of a flag that the command does not have.
func unknownFlag(cmd *cobra.Command, name string) error {
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && hasFlag(sub, name) {
			return usage("--%s must follow its command, as in %q", name, cmd.CommandPath()+" COMMAND --"+name)
		}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	return usage("unknown flag --%s%s", name, didYouMean("--"+name, names))
}

// hasFlag reports whether the command, or one below it, has the flag.
func hasFlag(cmd *cobra.Command, name string) bool {
	return cmd.Flags().Lookup(name) != nil || cmd.PersistentFlags().Lookup(name) != nil ||
		slices.ContainsFunc(cmd.Commands(), func(sub *cobra.Command) bool { return hasFlag(sub, name) })
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

// argumentMeanings are the arguments of the commands, named as in their Use.
var argumentMeanings = map[string]string{
	"DIR":        "the folder of an export",
	"FILE":       "the name of a file",
	"GROUP":      "the id of a group (sluice admin group list)",
	"JOB":        "the id of a job (sluice admin job list)",
	"PATH":       `a file, a folder, or "-" for standard input`,
	"STATUS_URL": "the status URL of an export",
	"UNIT":       "the id of a unit (sluice admin job show)",
	"URL":        "the URL to request",
	"WORKER":     "the id of a worker (sluice admin worker list)",
}

// exactly makes a command take these arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usage("unexpected argument %q", args[len(names)])
		}
		return atLeast(names...)(cmd, args)
	}
}

// atLeast makes a command take these arguments, and more.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) >= len(names) {
			return nil
		}
		name := names[len(args)]
		return usage("missing %s: %s", name, argumentMeanings[name])
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
	return a.withJSON(cmd)
}
