// Command standalone runs all services of Sluice in one process with an embedded Redis and object store, for a laptop and
// for the demo. Jobs and their files are kept in the state folder and outlive the process; a process that is killed forgets
// the last seconds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) { // the help or the version was asked for, and printed
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "standalone:", err)
		if errors.As(err, new(usageError)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opts, err := parse(args, stdout)
	if err != nil {
		return err
	}
	return serve(ctx, opts, stdout, stderr)
}
