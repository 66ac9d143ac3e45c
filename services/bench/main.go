// Command bench measures Sluice on this machine, beside the ceiling that the same machine sets in the same run. It is run
// by scripts/bench.sh, which builds the services into bin/ and starts a Redis, an S3 server and a PostgreSQL of its own.
//
// Each file is a section of the report, in this order: throughput, fairness, cohorts, recovery, api, flood, memory,
// costs.
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
	flag.IntVar(&opts.patients, "patients", 5200, "patients of the largest population; about 0.41 MB each")
	flag.IntVar(&opts.rounds, "rounds", 5, "how often each figure is measured")
	flag.StringVar(&opts.only, "only", "", "sections to measure, such as throughput,api; default: all")
	flag.StringVar(&opts.binaries, "bin", "bin", "folder of the services")
	flag.StringVar(&opts.json, "json", "", "file to write the figures to")
	flag.StringVar(&opts.profile, "profile", "", "file to write a CPU profile of a worker to, taken during an export")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, opts, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
