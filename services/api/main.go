// Command api serves the FHIR endpoint: kick-off, status, cancel and files.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("api", run) }

// run is the whole process: configuration, parts, listeners, until the context ends.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	var cfg settings
	checkOnly, err := config.Load(ctx, "api", args, environ, &cfg)
	if err != nil || checkOnly {
		return err
	}
	return serve(ctx, cfg, stderr)
}
