package wiring

import (
	"flag"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

// Load fills the config of a service from the environment. The one flag of a service is --check-config: it reports
// what is wrong with the configuration, and nothing is started.
func Load(service string, args, environ []string, config any) (checkOnly bool, err error) {
	flags := flag.NewFlagSet(service, flag.ContinueOnError)
	flags.BoolVar(&checkOnly, "check-config", false, "check the configuration and exit")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	if flags.NArg() > 0 {
		return false, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return checkOnly, platform.LoadConfig(environ, config)
}
