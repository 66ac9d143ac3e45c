// Command ceiling measures what the machine can do for an export when nobody plans, selects, checks or counts: it reads
// every body of the store's tables, gzips it at level 1 and puts it into a bucket. Bench runs it beside Sluice.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	streams := flag.Int("streams", runtime.GOMAXPROCS(0)+1, "pieces of tables at once, each with a connection of its own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	began := time.Now()
	moved, err := move(ctx, os.Getenv("CEILING_DATABASE"), os.Getenv("CEILING_S3"), *streams)
	stop()
	moved.Seconds = time.Since(began).Seconds()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(moved)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ceiling:", err)
		os.Exit(1)
	}
}
