package config

import (
	"context"
	"flag"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
)

// Load fills the config of a service from the environment. A service has two flags, with which nothing is started:
// --check-config reports what is wrong with the configuration, and --check-health whether the service that runs with the
// same environment is ready, which it asks at its private listener: for containers, whose image has nothing else to ask by.
func Load(ctx context.Context, service string, args, environ []string, config any) (checkOnly bool, err error) {
	flags := flag.NewFlagSet(service, flag.ContinueOnError)
	flags.BoolVar(&checkOnly, "check-config", false, "check the configuration and exit")
	asksHealth := flags.Bool("check-health", false, "ask the running service whether it is ready and exit")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	if flags.NArg() > 0 {
		return false, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *asksHealth {
		return true, checkHealth(ctx, environ)
	}
	return checkOnly, envconfig.Load(environ, config)
}
