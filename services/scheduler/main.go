// Command scheduler expires and purges jobs, rescues lost units and sweeps orphaned objects. Several may run.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

const about = `Expires and purges exports, rescues those of lost workers, and serves the operator's page. One suffices,
several may run. It needs Redis and the object store.`

func main() { config.Main("scheduler", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "scheduler", about, args, environ, stderr, serve)
}
