package config

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Main runs a service until it is told to stop (SIGINT or SIGTERM) and ends the process with its exit code: 0 when it
// stopped in order, 1 when it could not go on, which it says on stderr.
func Main(service string, run func(ctx context.Context, args, environ []string, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", service, err)
		os.Exit(1)
	}
}
