// Command bench measures an export on this machine, beside the ceiling that the same machine sets in the same run: the same
// bytes through gzip and into the object store with nothing else to do. It needs a Redis and an S3 server (scripts/bench.sh
// starts both) and the services in bin/.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	var opts options
	flag.IntVar(&opts.patients, "patients", 2600, "patients to generate; about 0.4 MB each")
	flag.IntVar(&opts.workers, "workers", 1, "worker processes")
	flag.IntVar(&opts.concurrency, "concurrency", 2, "units at once in each worker")
	flag.StringVar(&opts.binaries, "bin", "bin", "folder of the services")
	flag.StringVar(&opts.data, "data", "", "folder of NDJSON to export the group 'all' of; default: generated")
	flag.StringVar(&opts.json, "json", "", "file to write the figures to")
	flag.StringVar(&opts.profile, "profile", "", "file to write a CPU profile of the first worker to")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, opts, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
