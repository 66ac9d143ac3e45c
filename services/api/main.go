// Command api serves the FHIR endpoint: kick-off, status, cancel and files.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "api:", err)
		os.Exit(1)
	}
}

// run is the whole process: configuration, parts, listeners, until the context ends.
func run(ctx context.Context, args, environ []string, stderr io.Writer) error {
	cfg, checkOnly, err := load(args, environ)
	if err != nil || checkOnly {
		return err
	}
	return serve(ctx, cfg, stderr)
}
