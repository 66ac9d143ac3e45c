package config

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
)

// Main runs a service until SIGINT or SIGTERM and exits: with 0 after an orderly stop, with 1 and the error on stderr
// otherwise.
func Main(service string, run func(ctx context.Context, args, environ []string, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", service, err)
		os.Exit(1)
	}
}

// Run loads the settings of a service from the environment and serves. Two flags start nothing: --check-config reports
// what is wrong with the settings; --check-health reports whether the service that runs with the same environment is
// ready. The latter is for containers, whose image has no HTTP client.
func Run[Settings any](
	ctx context.Context, service string, args, environ []string, stderr io.Writer,
	serve func(context.Context, Settings, io.Writer) error,
) error {
	flags := flag.NewFlagSet(service, flag.ContinueOnError)
	checksConfig := flags.Bool("check-config", false, "check the configuration and exit")
	checksHealth := flags.Bool("check-health", false, "ask the running service whether it is ready and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *checksHealth {
		return checkHealth(ctx, environ)
	}
	var settings Settings
	if err := envconfig.Load(environ, &settings); err != nil || *checksConfig {
		return err
	}
	return serve(ctx, settings, stderr)
}
