package config

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Main runs a service until SIGINT or SIGTERM and exits: with 0 after an orderly stop, with 1 and the error on stderr
// otherwise.
func Main(service string, run func(ctx context.Context, args, environ []string, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stderr)
	stop()
	var asked information
	if errors.As(err, &asked) {
		fmt.Print(asked.text)
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", service, err)
		os.Exit(1)
	}
}

// information is the text that --help and --version ask for. Main prints it to standard output.
type information struct{ text string }

func (information) Error() string { return "nothing was started" }

// Logger returns the logger of a process, writes the lines of the Redis client to it, and logs the build.
func Logger(stderr io.Writer, service string, level slog.Level) *slog.Logger {
	log := telemetry.NewLogger(stderr, service, level)
	redisclient.LogTo(log)
	log.Info("starting", "build", buildinfo.Of().String())
	return log
}

// Run loads the settings of a service from the environment and serves. Four flags start nothing: --help and --version;
// --check-config reports what is wrong with the settings and with the files that they name; --check-health reports whether
// the service that runs with the same environment is ready. The latter is for containers, whose image has no HTTP client.
func Run[Settings any](
	ctx context.Context, service, about string, args, environ []string, stderr io.Writer,
	serve func(context.Context, Settings, io.Writer) error,
) error {
	flags := flag.NewFlagSet(service, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned
	checksConfig := flags.Bool("check-config", false, "check the settings and the files that they name, and exit")
	checksHealth := flags.Bool("check-health", false, "ask the running service whether it is ready, and exit")
	version := flags.Bool("version", false, "print the version, and exit")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return help[Settings](service, about, flags)
	case err != nil:
		return fmt.Errorf("%w: see %s --help", err, service)
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q: see %s --help", flags.Arg(0), service)
	case *version:
		return information{service + " " + buildinfo.Of().String() + "\n"}
	case *checksHealth:
		return checkHealth(ctx, environ)
	}
	var settings Settings
	err = envconfig.Load(environ, &settings)
	if !*checksConfig {
		if err != nil {
			return err
		}
		return serve(ctx, settings, stderr)
	}
	// Files of data and groups are opened by the start, so only here.
	if checked, ok := any(&settings).(interface{ CheckFiles() error }); ok {
		if filesErr := checked.CheckFiles(); filesErr != nil {
			err = errors.Join(err, fmt.Errorf("files:\n%w", filesErr))
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "%s: the configuration is valid\n", service)
	return err
}

// help returns the help of a service, with the variables of its settings.
func help[Settings any](service, about string, flags *flag.FlagSet) error {
	var text strings.Builder
	fmt.Fprintf(&text, "Usage: %s [--check-config | --check-health | --version]\n\n%s\n\nFlags:\n", service, about)
	flags.VisitAll(func(f *flag.Flag) { fmt.Fprintf(&text, "  --%-13s %s\n", f.Name, f.Usage) })
	settings, err := envconfig.Settings(new(Settings))
	if err != nil {
		return err
	}
	text.WriteString("\nIt reads these variables, each also as NAME_FILE with the name of a file that holds it. Their\n" +
		"meanings are in docs/configuration.md (https://github.com/sluice-fhir/sluice/blob/main/docs/configuration.md).\n\n")
	for _, required := range []bool{true, false} {
		for _, s := range settings {
			if s.Required != required {
				continue
			}
			value := s.Default
			if required {
				value = "(required)"
			}
			text.WriteString(strings.TrimRight(fmt.Sprintf("  %-34s %s", s.Variable, value), " ") + "\n")
		}
	}
	return information{text.String()}
}
