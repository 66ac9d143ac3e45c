// Command worker plans jobs, exports units and seals manifests. Run as many as you like, anywhere.
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("worker", run) }

// run is the whole process: configuration, parts, listeners, until the context ends.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	cfg, checkOnly, err := load(ctx, args, environ)
	if err != nil || checkOnly {
		return err
	}
	return serve(ctx, cfg, stderr)
}
