package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/wiring"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// config is the worker's configuration, read from SLUICE_* variables.
type config struct {
	wiring.Common
	wiring.Redis
	wiring.Objects
	wiring.Source
	wiring.Directory
	Concurrency int           `env:"WORKER_CONCURRENCY" envDefault:"0"` // units at once; 0: one for each processor
	Drain       time.Duration `env:"WORKER_DRAIN" envDefault:"10s"`     // on stop, how long running units may go on
	MemoryLimit int64         `env:"WORKER_MEMORY_LIMIT" envDefault:"100663296"`
	UnitBytes   int64         `env:"UNIT_BYTES" envDefault:"268435456"` // NDJSON bytes a unit should hold
	FileBytes   int64         `env:"FILE_BYTES" envDefault:"536870912"` // NDJSON bytes a file may hold, a line more
	Outstanding int           `env:"UNITS_OUTSTANDING" envDefault:"16"` // units of a job queued or running at once
	MaxAttempts int           `env:"UNIT_ATTEMPTS" envDefault:"5"`
	Heartbeat   time.Duration `env:"UNIT_HEARTBEAT" envDefault:"4s"`
	OutageDelay time.Duration `env:"OUTAGE_DELAY" envDefault:"10s"` // how long a unit waits for what is down
	Retention   time.Duration `env:"RETENTION" envDefault:"168h"`   // how long finished jobs are kept
}

func (c config) pipeline() pipeline.Config {
	return pipeline.Config{
		UnitBytes: c.UnitBytes, FileBytes: c.FileBytes, Outstanding: c.Outstanding, MaxAttempts: c.MaxAttempts,
		Heartbeat: c.Heartbeat, OutageDelay: c.OutageDelay, Retention: c.Retention,
	}
}

// Validate refuses what cannot work.
func (c config) Validate() error {
	var errs []error
	if c.Concurrency < 0 {
		errs = append(errs, errors.New("SLUICE_WORKER_CONCURRENCY must not be negative"))
	}
	if c.Drain < 0 {
		errs = append(errs, errors.New("SLUICE_WORKER_DRAIN must not be negative"))
	}
	return errors.Join(append(errs, c.pipeline().Validate())...)
}

func load(args, environ []string) (cfg config, checkOnly bool, err error) {
	checkOnly, err = wiring.Load("worker", args, environ, &cfg)
	return cfg, checkOnly, err
}

func serve(ctx context.Context, cfg config, stderr io.Writer) (err error) {
	log := platform.NewLogger(stderr, "worker", cfg.LogLevel)
	registry := platform.NewRegistry()
	// The collector works harder near the limit instead of letting the process grow with what passes through it.
	debug.SetMemoryLimit(cfg.MemoryLimit)

	jobs, tasks, err := cfg.Redis.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	objects, err := cfg.Objects.Open()
	if err != nil {
		return err
	}
	groups, access, err := cfg.Directory.Open()
	if err != nil {
		return err
	}
	private, err := wiring.Listen(ctx, cfg.Private)
	if err != nil {
		return err
	}
	defer func() { _ = private.Close() }() // for a start that fails
	source, err := cfg.Source.Open(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	worker, err := pipeline.New(cfg.pipeline(), pipeline.Parts{
		Jobs: jobs, Queue: tasks, Objects: objects, Source: source, Groups: groups, Access: access,
		Now: time.Now, Logger: log, Registry: registry,
	})
	if err != nil {
		return err
	}
	concurrency := cfg.Concurrency
	if concurrency == 0 {
		concurrency = runtime.GOMAXPROCS(0)
	}
	log.Info("worker is ready", "private", private.Addr().String(), "concurrency", concurrency)
	checks := platform.Checks{"redis": jobs.Ping, "queue": tasks.Ping, "objects": objects.Check, "source": source.Check}
	err = platform.Run(ctx,
		wiring.HTTP("private listener", private, platform.Health(checks, registry)),
		wiring.Bucket(objects, log),
		wiring.Unchanged(source.Check),
		platform.Part{Name: "units", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Concurrency: concurrency, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Unit: worker.Handle})
		}},
	)
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	return nil
}
