// Command chaos runs the real services beside a Redis, a MinIO and a PostgreSQL of its own, with a proxy between each pair.
// Clients export without a pause, at all levels, while one thing after the other breaks: processes, servers, connections,
// clocks. A seed decides what breaks and in which order. Every completed export must have exactly the lines that it
// should have, and when all is over nothing may be left. `make chaos` runs it; docs/reliability.md has what it has shown.
//
//	options.go, run.go         a run, from the start of the servers to the report
//	system.go, service.go      what is tested: servers, services
//	links.go, front.go         the proxies between them, and the load balancer
//	data.go, truth.go          the data, and what each export must return
//	clients.go, visits.go      those who export
//	faults*.go, schedule.go    what breaks, and when
//	soak.go                    instead of faults: what is used, over an hour
//	checks.go, report.go       what must hold at the end, and what was measured
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

func main() {
	opts, list := parseFlags()
	if list {
		for _, f := range faults {
			fmt.Println(f.name)
		}
		return
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
