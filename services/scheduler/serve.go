package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/adminui"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
)

// settings is the scheduler's configuration, read from SLUICE_* variables.
type settings struct {
	config.Common
	config.Redis
	config.Objects
	config.Audit
	config.OperatorPage
	maintenance.Config
	Drain time.Duration `env:"SCHEDULER_DRAIN" envDefault:"5s"` // how long a pass or a purge may continue after SIGTERM
}

// Validate returns every problem of the configuration.
func (c settings) Validate() error {
	return errors.Join(c.Common.Validate(), c.Redis.Validate(), c.Config.Validate(), c.Objects.Validate(), c.Audit.Validate(),
		c.OperatorPage.Validate())
}

// taskConcurrency is how many passes and purges run at once. They wait for the stores, not for the CPU.
const taskConcurrency = 4

func serve(ctx context.Context, cfg settings, stderr io.Writer) (err error) {
	log := config.Logger(stderr, "scheduler", cfg.LogLevel)
	registry := telemetry.NewRegistry()
	listeners, err := cfg.Listeners(log, registry)
	if err != nil {
		return err
	}
	tracing, err := cfg.Tracing(ctx, "scheduler", log, registry)
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
	objects, err := cfg.Objects.Observed(dependencies).Open(nil)
	if err != nil {
		return err
	}
	events, err := cfg.Audit.Open("scheduler", registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	maintainer, err := maintenance.New(cfg.Config, maintenance.Deps{
		Jobs: jobs, Queue: tasks, Objects: objects, Audit: events, Now: time.Now, Logger: log, Registry: registry,
		Tracing: tracing,
	})
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
	log.Info("scheduler has started", "private", private.Addr().String())
	checks := health.Checks{"redis": jobs.Ping, "queue": tasks.Ping, "objects": objects.Check}
	operators := http.NewServeMux()
	operators.Handle("GET /scale", scaleHandler(tasks, log))
	operators.Handle("/", health.Handler(checks, registry))
	paths, shown := []string{"/scale"}, cfg.OperatorPage.Shown(private.Addr())
	if shown {
		paths = []string{adminui.Path, "/scale"}
	}
	parts := []rungroup.Component{
		config.PrivateHTTP(private, operators, listeners.Private, paths...),
		config.Readiness("scheduler", checks, log),
		config.Bucket(objects, log),
		{Name: "enqueue passes", Run: maintainer.Run},
		{Name: "survey", Run: maintainer.Survey},
		{Name: "maintenance tasks", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Roots: roots, Concurrency: taskConcurrency, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Purge: maintainer.Purge, Pass: maintainer.Pass})
		}},
		{Name: "rescue tasks", Run: func(ctx context.Context) error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: cfg.Redis.URL, Roots: roots, Concurrency: 1, Drain: cfg.Drain, Logger: log,
			}, queue.Handlers{Rescue: maintainer.Pass})
		}},
	}
	if shown {
		page := adminui.New(adminui.Config{Hosts: cfg.Hosts, Logger: log}, &ops.Operator{
			Jobs: jobs, Queue: tasks, Audit: events, Now: time.Now,
		})
		operators.Handle(adminui.Path, page)
		parts = append(parts, rungroup.Component{Name: "operator's page", Run: page.Run})
	}
	return rungroup.Run(ctx, parts...)
}
