// Command bench measures Sluice and, in the same run, the ceiling of this machine. scripts/bench.sh runs it: it builds the
// services into bin/ and starts a Redis, an S3 server and a PostgreSQL.
//
// Each file is a section of the report, in this order: throughput, fairness, cohorts, recovery, api, flood, memory,
// costs, parameters. crowd, records, fleet, downloads and sweep are about load and are measured only if they are named.
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
	flag.IntVar(&opts.rounds, "rounds", 5, "number of rounds for each figure")
	flag.IntVar(&opts.records, "records", 20_000, "ended jobs that the section records keeps")
	flag.IntVar(&opts.objects, "objects", 1_000_000, "objects of the section sweep")
	flag.StringVar(&opts.only, "only", "", "sections to measure, such as throughput,api; default: all but those for load")
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
