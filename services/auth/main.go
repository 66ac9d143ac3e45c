// Command auth is the token service: it issues access tokens to registered clients (SMART Backend Services).
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("auth", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "auth", args, environ, stderr, serve)
}
