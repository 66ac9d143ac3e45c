package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/scheduler/upkeep"
	"github.com/sluice-fhir/sluice/services/wiring"
)

// config is the scheduler's configuration, read from SLUICE_* variables.
type config struct {
	wiring.Common
	wiring.Redis
	wiring.Objects
	ExpireEvery time.Duration `env:"EXPIRE_EVERY" envDefault:"30s"`
	RescueEvery time.Duration `env:"RESCUE_EVERY" envDefault:"3s"`
	SweepEvery  time.Duration `env:"SWEEP_EVERY" envDefault:"1h"`
	Silence     time.Duration `env:"UNIT_SILENCE" envDefault:"20s"` // a unit not heard of for this long is lost
	SweepGrace  time.Duration `env:"SWEEP_GRACE" envDefault:"1h"`   // younger objects are never orphans
	MaxAge      time.Duration `env:"JOB_MAX_AGE" envDefault:"72h"`  // a job that takes longer has failed
	Retention   time.Duration `env:"RETENTION" envDefault:"168h"`
	Outstanding int           `env:"UNITS_OUTSTANDING" envDefault:"16"`
	Drain       time.Duration `env:"SCHEDULER_DRAIN" envDefault:"5s"`
}

func (c config) upkeep() upkeep.Config {
	return upkeep.Config{
		ExpireEvery: c.ExpireEvery, RescueEvery: c.RescueEvery, SweepEvery: c.SweepEvery, Silence: c.Silence,
		SweepGrace: c.SweepGrace, MaxAge: c.MaxAge, Retention: c.Retention, Outstanding: c.Outstanding,
	}
}

// Validate refuses what cannot work.
func (c config) Validate() error { return c.upkeep().Validate() }

func load(args, environ []string) (cfg config, checkOnly bool, err error) {
	checkOnly, err = wiring.Load("scheduler", args, environ, &cfg)
	return cfg, checkOnly, err
}

// taskConcurrency is how many duties and purges run at once. They wait for the stores, not for the processor.
const taskConcurrency = 4

func serve(ctx context.Context, cfg config, stderr io.Writer) (err error) {
	log := platform.NewLogger(stderr, "scheduler", cfg.LogLevel)
	registry := platform.NewRegistry()
	jobs, tasks, err := cfg.Redis.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close(), jobs.Close()) }()
	objects, err := cfg.Objects.Open()
	if err != nil {
		return err
	}
	keeper, err := upkeep.New(cfg.upkeep(), upkeep.Parts{
		Jobs: jobs, Queue: tasks, Objects: objects, Now: time.Now, Logger: log, Registry: registry,
	})
	if err != nil {
		return err
	}
	private, err := wiring.Listen(ctx, cfg.Private)
	if err != nil {
		return err
	}
	defer func() { _ = private.Close() }() // for a start that fails
	log.Info("scheduler is ready", "private", private.Addr().String())
	checks := platform.Checks{"redis": jobs.Ping, "queue": tasks.Ping, "objects": objects.Check}
	return platform.Run(ctx,
		wiring.HTTP("private listener", private, platform.Health(checks, registry)),
		wiring.Bucket(objects, log),
		platform.Part{Name: "ticks", Run: keeper.Tick},
		platform.Part{Name: "duties", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Concurrency: taskConcurrency, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Purge: keeper.Purge, Upkeep: keeper.Do})
		}},
		platform.Part{Name: "watch", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Concurrency: 1, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Watch: keeper.Do})
		}},
	)
}
