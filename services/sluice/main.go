// Command sluice exports, loads and checks FHIR bulk data, and operates a Sluice deployment.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-fhir/sluice/services/sluice/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills the process
	code := command.Run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
