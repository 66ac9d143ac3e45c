// Command api serves the FHIR endpoint: kick-off, status, cancel and files.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("api", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "api", args, environ, stderr, serve)
}
