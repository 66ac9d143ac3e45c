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
	case *checksConfig:
		return checkConfig[Settings](service, environ, stderr)
	}
	var settings Settings
	if err := envconfig.Load(environ, &settings); err != nil {
		return err
	}
	return serve(ctx, settings, stderr)
}
