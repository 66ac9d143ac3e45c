// Command chaos runs the real services beside a Redis, a MinIO and a PostgreSQL of its own, with a proxy between each pair.
// Clients export without a pause, at all levels, while one thing after the other breaks: processes, servers, connections,
// clocks. A seed decides what breaks and in which order. Every completed export must have exactly the lines that it
// should have, and when all is over nothing may be left. `make chaos` runs it; docs/reliability.md has what it has shown.
//
//	main.go, run.go            a run, from the start of the servers to the report
//	system.go, service.go      what is tested: servers, services
//	links.go, front.go         the proxies between them, and the load balancer
//	truth.go                   what each export must return
//	clients.go, visits.go      those who export
//	faults*.go, schedule.go    what breaks, and when
//	checks.go, report.go       what must hold at the end, and what was measured
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

func main() {
	opts := options{lasts: 10 * time.Minute, patients: 60, retention: 2 * time.Minute, bin: "bin"}
	var hours float64
	var only string
	list := flag.Bool("list", false, "list the faults and exit")
	flag.DurationVar(&opts.lasts, "for", opts.lasts, "how long things break")
	flag.Float64Var(&hours, "hours", 0, "the same in hours")
	flag.Uint64Var(&opts.seed, "seed", 0, "repeats the choices of an earlier run; 0: new ones")
	flag.IntVar(&opts.patients, "patients", opts.patients, "patients of the population, at least 20")
	flag.DurationVar(&opts.retention, "retention", opts.retention, "how long ended jobs are kept")
	flag.StringVar(&only, "faults", "", "names of the only faults, separated by commas")
	flag.StringVar(&opts.bin, "bin", opts.bin, "folder of the services")
	flag.StringVar(&opts.keep, "keep", "", "existing folder for the logs of the services")
	flag.Parse()
	if *list {
		for _, f := range faults {
			fmt.Println(f.name)
		}
		return
	}
	if hours > 0 {
		opts.lasts = time.Duration(hours * float64(time.Hour))
	}
	if opts.seed == 0 {
		opts.seed = uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	}
	if only != "" {
		opts.only = strings.Split(only, ",")
	}
	redis.SetLogger(silent{}) // outages are intended
	zerolog.SetGlobalLevel(zerolog.Disabled)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, opts, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
