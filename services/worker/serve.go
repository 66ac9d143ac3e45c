package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// settings is the worker's configuration, read from SLUICE_* variables.
type settings struct {
	config.Common
	config.Redis
	config.Objects
	config.Envelope
	config.Source
	config.Directory
	// units at once; 0: one more than processors
	Concurrency int `env:"WORKER_CONCURRENCY" envDefault:"0"`
	// additional slots for short units, so that small jobs pass large ones
	Express int `env:"WORKER_EXPRESS" envDefault:"2"`
	// how long running units may continue after SIGTERM before they are handed back
	Drain time.Duration `env:"WORKER_DRAIN" envDefault:"10s"`
	// bytes of the soft memory limit of the Go runtime
	MemoryLimit int64 `env:"WORKER_MEMORY_LIMIT" envDefault:"100663296"`
	pipeline.Config
}

// Validate returns every problem of the configuration.
func (c settings) Validate() error {
	var errs []error
	if c.Concurrency < 0 {
		errs = append(errs, errors.New("SLUICE_WORKER_CONCURRENCY must not be negative"))
	}
	if c.Express < 0 {
		errs = append(errs, errors.New("SLUICE_WORKER_EXPRESS must not be negative"))
	}
	if c.Drain < 0 {
		errs = append(errs, errors.New("SLUICE_WORKER_DRAIN must not be negative"))
	}
	return errors.Join(append(errs, c.Common.Validate(), c.Redis.Validate(), c.Source.Validate(), c.Directory.Validate(),
		c.Config.Validate(), c.Objects.Validate(), c.Envelope.Validate())...)
}

// CheckFiles opens the files that a start opens later.
func (c settings) CheckFiles() error {
	return errors.Join(c.Source.CheckFiles(), c.Directory.CheckFiles())
}

func serve(ctx context.Context, cfg settings, stderr io.Writer) (err error) {
	log := config.Logger(stderr, "worker", cfg.LogLevel)
	registry := telemetry.NewRegistry()
	listeners, err := cfg.Listeners(log, registry)
	if err != nil {
		return err
	}
	// Near the limit the garbage collector works harder, and the process does not grow with the data it streams.
	debug.SetMemoryLimit(cfg.MemoryLimit)

	tracing, err := cfg.Tracing(ctx, "worker", log, registry)
	if err != nil {
		return err
	}
	defer tracing.Close(ctx)
	dependencies := telemetry.NewDependencies(registry)
	jobs, tasks, err := cfg.Redis.Observed(dependencies).Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	ring, err := cfg.Envelope.Ring(jobs)
	if err != nil {
		return err
	}
	objects, err := cfg.Objects.Observed(dependencies).Open(pipeline.OutlastKeys(ring.Key, jobs.Ping, log))
	if err != nil {
		return err
	}
	roots, err := cfg.Redis.Roots()
	if err != nil {
		return err
	}
	private, err := config.Listen(ctx, cfg.Private)
	if err != nil {
		return err
	}
	defer func() { _ = private.Close() }() // if the start fails
	concurrency := cfg.Concurrency
	if concurrency == 0 {
		concurrency = runtime.GOMAXPROCS(0) + 1 // while one waits for a store, the others use the CPUs
	}
	units := concurrency + cfg.Express
	// A plan unit keeps one connection while it reads a group.
	bases, err := cfg.Source.Bases()
	if err != nil {
		return err
	}
	directory, err := cfg.Directory.Observed(dependencies).Open(ctx, log, bases, units+2)
	if err != nil {
		return err
	}
	defer directory.Close()
	source, err := cfg.Source.Observed(dependencies).Open(ctx, log, units)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	worker, err := pipeline.New(cfg.Config, pipeline.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Source: source.Source, Groups: directory.Groups, Access: directory.Access,
		Bases: bases, Now: time.Now, Logger: log, Registry: registry, Tracing: tracing,
	})
	if err != nil {
		return err
	}
	id, err := queue.ProcessID()
	if err != nil {
		return err
	}
	log.Info("worker has started", "private", private.Addr().String(), "concurrency", concurrency,
		"express", cfg.Express, "worker", id)
	checks := health.Checks{"redis": jobs.Ping, "queue": tasks.Ping, "objects": objects.Check, "source": source.Check,
		"directory": directory.Check}
	parts := []rungroup.Component{
		config.PrivateHTTP(private, health.Handler(checks, registry), listeners.Private),
		config.Readiness("worker", checks, log),
		config.Bucket(objects, log),
		{Name: "units", Run: func(ctx context.Context) error {
			if err := source.Await(ctx, log); err != nil {
				return nil //nolint:nilerr // the process is stopping
			}
			reportLeftOut(ctx, log, worker, cfg.Source.URL != "")
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Roots: roots, Concurrency: concurrency, Express: cfg.Express, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Unit: worker.Handle})
		}},
	}
	parts = append(parts, rungroup.Component{Name: "drain orders", Run: func(ctx context.Context) error {
		if tasks.AwaitDrain(ctx, id) { // returning stops the process as SIGTERM does
			log.Info("worker is drained by an operator", "worker", id)
		}
		return nil
	}})
	if source.Watch != nil {
		parts = append(parts, *source.Watch)
	}
	return rungroup.Run(ctx, parts...)
}

// reportLeftOut sets the metric of what no export contains, and logs it. The source for a folder has logged its part with
// the first places.
func reportLeftOut(ctx context.Context, log *slog.Logger, worker *pipeline.Worker, fromDatabase bool) {
	all, err := worker.ObserveLeftOut(ctx)
	if err != nil {
		log.WarnContext(ctx, "what exports leave out is not known yet", "err", err)
	}
	for _, l := range all {
		if fromDatabase {
			log.WarnContext(ctx, "resources are left out", "type", l.Type, "reason", l.Reason, "count", l.Count,
				"what", l.Reason.Text())
		}
	}
}
