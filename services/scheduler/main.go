// Command scheduler expires and purges jobs, rescues lost units and sweeps orphaned objects. Several may run.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("scheduler", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "scheduler", args, environ, stderr, serve)
}
