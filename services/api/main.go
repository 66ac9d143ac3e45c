// Command api serves the FHIR endpoint: kick-off, status, cancel and files.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

const about = `The FHIR endpoint: kick-off, status, cancel and files. Any number may run. It needs Redis, the object store,
groups and grants, and the issuers whose tokens it accepts.`

func main() { config.Main("api", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "api", about, args, environ, stderr, serve)
}
