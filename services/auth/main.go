// Command auth is the token service: it issues access tokens to registered clients (SMART Backend Services).
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

func main() { config.Main("auth", run) }

// run loads the configuration and serves until the context ends.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	var cfg settings
	checkOnly, err := config.Load(ctx, "auth", args, environ, &cfg)
	if err != nil || checkOnly {
		return err
	}
	return serve(ctx, cfg, stderr)
}
