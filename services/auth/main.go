// Command auth is the token service: it issues access tokens to registered clients (SMART Backend Services).
package main

import (
	"context"
	"io"

	"github.com/sluice-fhir/sluice/services/config"
)

const about = `The token service: access tokens for registered clients (SMART Backend Services, docs/auth.md). Any number
may run. It needs Redis. The API accepts its tokens if they are in
SLUICE_TOKEN_ISSUERS_FILE, and those of other issuers there as well: a deployment with another issuer does not need it.`

func main() { config.Main("auth", run) }

// run serves until the context ends, or checks the configuration.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	return config.Run(ctx, "auth", about, args, environ, stderr, serve)
}
