// Command worker plans jobs, exports units and seals manifests. Any number may run.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

const about = `Plans exports, writes their files and seals manifests. Any number may run; more finish an export sooner.
It needs Redis, the object store, groups and grants, and the clinical data.`

func main() { config.Main("worker", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "worker", about, args, environ, stderr, serve)
}
