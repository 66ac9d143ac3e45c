package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
)

// replays is the number of jobs that are recorded at once.
const replays = 32

// recordFigures are of many ended jobs that are kept.
type recordFigures struct {
	Held   int           `json:"held_jobs"`
	Files  int           `json:"files_of_each"`
	Bytes  float64       `json:"redis_bytes_of_each"`
	Passes []passFigures `json:"passes"`
	Few    []float64     `json:"status_p99_milliseconds_with_few"`
	Many   []float64     `json:"status_p99_milliseconds_with_all"`
	Ratio  []float64     `json:"ratio_of_status_p99"`
}

type passFigures struct {
	Name  string    `json:"name"`
	Every float64   `json:"interval_seconds"`
	Few   []float64 `json:"milliseconds_with_few"`
	Many  []float64 `json:"milliseconds_with_all"`
}

// records measures the scheduler's passes and status polls with few ended jobs and with many.
func (b *bench) records(ctx context.Context) (err error) {
	d, err := b.deployLargest(ctx, 1)
	if err != nil {
		return err
	}
	defer d.stop()
	store, err := jobstore.Open(d.redis, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	like, err := d.newModel(ctx, store)
	if err != nil {
		return err
	}
	// Nothing else runs during the passes, and the job that is polled waits.
	for _, s := range []*service{d.scheduler, d.workers[0]} {
		if err := s.Stop(time.Minute); err != nil {
			return err
		}
	}
	polled, err := d.client.KickOff(ctx, bulkclient.Request{Group: "ten"})
	if err != nil {
		return err
	}
	f := &b.report.Records
	f.Held, f.Files = b.options.records, len(like.files())
	if err := b.passes(ctx, d, store, f, false); err != nil {
		return err
	}
	if err := b.polls(ctx, d, polled, &f.Few); err != nil {
		return err
	}
	if f.Bytes, err = d.hold(ctx, store, like, f.Held); err != nil {
		return err
	}
	if err := b.passes(ctx, d, store, f, true); err != nil {
		return err
	}
	if err := b.polls(ctx, d, polled, &f.Many); err != nil {
		return err
	}
	for i := range f.Many {
		f.Ratio = append(f.Ratio, f.Many[i]/f.Few[i])
	}
	return nil
}

// hold records that many complete jobs and returns what each takes in Redis, in bytes.
func (d *deployment) hold(ctx context.Context, store *jobstore.Store, like model, jobs int) (float64, error) {
	before, err := weigh(ctx, d.redis, "*")
	if err != nil {
		return 0, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(replays)
	for n := range jobs {
		group.Go(func() error { _, err := like.replay(groupCtx, store, n, true); return err })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	after, err := weigh(ctx, d.redis, "*")
	return float64(after-before) / float64(jobs), err
}

// polls appends the 99th percentile of status polls of a waiting job, in ms, for each round.
func (b *bench) polls(ctx context.Context, d *deployment, job bulkclient.Job, to *[]float64) error {
	for range b.options.rounds {
		token, err := d.Token(ctx, "")
		if err != nil {
			return err
		}
		m, err := load(ctx, callers, polls,
			func(int) vegeta.Target { return authorized(http.MethodGet, job.StatusURL, token) }, wantAccepted)
		if err != nil {
			return err
		}
		*to = append(*to, milliseconds(m.Latencies.P99))
	}
	return nil
}

// passes runs each of the scheduler's passes in this process, with its default settings.
func (b *bench) passes(
	ctx context.Context, d *deployment, store *jobstore.Store, f *recordFigures, all bool,
) (err error) {
	tasks, err := queue.Open(d.redis)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tasks.Close()) }()
	events, err := audit.Open(audit.Config{Path: filepath.Join(b.dir, "audit.ndjson"), Process: "scheduler"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	cfg := envconfig.Defaults[maintenance.Config]()
	registry := prometheus.NewRegistry()
	runner, err := maintenance.New(cfg, maintenance.Deps{
		Jobs: store, Queue: tasks, Objects: d.store, Audit: events, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Registry: registry,
	})
	if err != nil {
		return err
	}
	for i, pass := range []struct {
		name  string
		every time.Duration
		run   func(context.Context) error
	}{
		{"rescue", cfg.RescueEvery, runner.Rescue},
		{"survey", cfg.SurveyEvery, func(ctx context.Context) error { return surveyOnce(ctx, runner, registry) }},
		{"expire", cfg.ExpireEvery, runner.Expire},
		{"sweep", cfg.SweepEvery, runner.Sweep},
	} {
		if !all {
			f.Passes = append(f.Passes, passFigures{Name: pass.name, Every: pass.every.Seconds()})
		}
		to := &f.Passes[i].Few
		if all {
			to = &f.Passes[i].Many
		}
		for range b.options.rounds {
			began := time.Now()
			if err := pass.run(ctx); err != nil {
				return err
			}
			*to = append(*to, milliseconds(time.Since(began)))
		}
	}
	return nil
}

// surveyOnce runs one survey: it stops the loop of surveys after the first.
func surveyOnce(ctx context.Context, runner *maintenance.Runner, registry prometheus.Gatherer) error {
	before, err := surveys(registry)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() error { return runner.Survey(ctx) })
	group.Go(func() error {
		defer stop()
		for ctx.Err() == nil {
			if now, err := surveys(registry); err != nil || now > before {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	})
	return group.Wait()
}

// surveys returns how many surveys were done, and an error if one failed.
func surveys(registry prometheus.Gatherer) (done float64, err error) {
	families, err := registry.Gather()
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			labels := metric.GetLabel() // duty, outcome
			if family.GetName() != "sluice_scheduler_passes_total" || labels[0].GetValue() != "survey" {
				continue
			}
			if labels[1].GetValue() == "done" {
				done = metric.GetCounter().GetValue()
			} else if metric.GetCounter().GetValue() > 0 {
				err = errors.New("a survey failed")
			}
		}
	}
	return done, err
}
