// Command ceiling measures the upper bound of an export on this machine, without planning, selecting, checking or counting:
// it reads every body of the store's tables, gzips it at level 1 and puts it into a bucket. Bench compares Sluice with it.
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
	streams := flag.Int("streams", runtime.GOMAXPROCS(0)+1, "pieces of tables at once, each with its own connection")
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
