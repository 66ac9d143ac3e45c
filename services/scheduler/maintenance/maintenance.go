// Package maintenance is the scheduler's periodic work: expire finished jobs, purge ended ones, rescue units whose worker
// or task was lost, and sweep orphaned objects.
//
// Each is a pass that may be killed at any instruction, run twice, or run by several schedulers at once. Run enqueues the
// passes at their intervals; whichever scheduler takes the task runs the pass. A survey is the exception: every scheduler
// runs its own.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// The passes, by their names on the wire and in metrics.
const (
	passExpire = "expire"
	passRescue = "rescue"
	passSweep  = "sweep"
	passSurvey = "survey" // never enqueued
)

// Config holds the intervals and limits of the scheduler.
type Config struct {
	ExpireEvery time.Duration `env:"EXPIRE_EVERY" envDefault:"30s"` // interval of expire passes
	RescueEvery time.Duration `env:"RESCUE_EVERY" envDefault:"3s"`  // interval of rescue passes
	SweepEvery  time.Duration `env:"SWEEP_EVERY" envDefault:"1h"`   // interval of sweeps
	SurveyEvery time.Duration `env:"SURVEY_EVERY" envDefault:"15s"` // interval of surveys of all jobs, which set the gauges
	// a unit without a heartbeat for this long is lost; several times UNIT_HEARTBEAT
	Silence    time.Duration `env:"UNIT_SILENCE" envDefault:"20s"`
	SweepGrace time.Duration `env:"SWEEP_GRACE" envDefault:"1h"` // objects younger than this are never orphans
	// objects of jobs that Redis does not know are kept this long after a scheduler first reaches an empty Redis, so that it
	// can be restored
	RestoreGrace time.Duration `env:"RESTORE_GRACE" envDefault:"24h"`
	MaxAge       time.Duration `env:"JOB_MAX_AGE" envDefault:"72h"` // a job that is still live at this age fails
	jobs.Settings
}

// Validate returns every problem of the settings.
func (c Config) Validate() error {
	errs := []error{c.Settings.Validate()}
	for _, setting := range []struct {
		name  string
		value time.Duration
	}{
		{"EXPIRE_EVERY", c.ExpireEvery}, {"RESCUE_EVERY", c.RescueEvery}, {"SWEEP_EVERY", c.SweepEvery},
		{"SURVEY_EVERY", c.SurveyEvery}, {"UNIT_SILENCE", c.Silence}, {"JOB_MAX_AGE", c.MaxAge},
	} {
		if setting.value <= 0 {
			errs = append(errs, fmt.Errorf("SLUICE_%s must be positive", setting.name))
		}
	}
	if c.SweepGrace < 0 || c.RestoreGrace < 0 {
		errs = append(errs, errors.New("SLUICE_SWEEP_GRACE and SLUICE_RESTORE_GRACE must not be negative"))
	}
	return errors.Join(errs...)
}

// Deps are the dependencies of a Runner.
type Deps struct {
	Jobs     *jobstore.Store
	Queue    *queue.Client
	Objects  *objects.Store
	Audit    *audit.Log
	Now      func() time.Time
	Logger   *slog.Logger
	Registry prometheus.Registerer
	Tracing  *telemetry.Tracing // nil: no tracing
}

// Runner runs the passes.
type Runner struct {
	Deps
	lifecycle *jobs.Lifecycle
	cfg       Config
	metrics   metrics
	running   sync.Map // passes that this process is running
}

// New returns a Runner.
func New(cfg Config, deps Deps) (*Runner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	return &Runner{
		Deps: deps, cfg: cfg, metrics: newMetrics(deps.Registry, deps.Now()),
		lifecycle: &jobs.Lifecycle{
			Store: deps.Jobs, Queue: deps.Queue, Objects: deps.Objects, Audit: deps.Audit, Now: deps.Now,
			Settings: cfg.Settings,
		},
	}, nil
}

// Run enqueues the passes at their intervals until the context ends. Every second it notes that Redis can be reached, so
// that the rescue can tell the silence of workers from an outage.
func (r *Runner) Run(ctx context.Context) error {
	passes := map[string]struct {
		interval time.Duration
		enqueue  func(ctx context.Context, pass string, bucket time.Time, interval time.Duration) error
	}{
		passExpire: {r.cfg.ExpireEvery, r.Queue.EnqueuePass},
		passSweep:  {r.cfg.SweepEvery, r.Queue.EnqueuePass},
		passRescue: {r.cfg.RescueEvery, r.Queue.EnqueueRescue},
	}
	last := map[string]time.Time{}
	var room sync.WaitGroup
	defer room.Wait()
	var mu sync.Mutex
	failing := map[string]bool{} // only changes are logged: an outage has several failures a second
	failed := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil && !failing[what] {
			r.Logger.Warn(what+" failed; it is repeated", "err", err)
		}
		failing[what] = err != nil
	}
	ticker := time.NewTicker(min(r.cfg.ExpireEvery, r.cfg.RescueEvery, r.cfg.SweepEvery, time.Second))
	defer ticker.Stop()
	for {
		failed("the note that Redis can be reached", r.Jobs.NoteReachable(ctx))
		for name, pass := range passes {
			bucket := r.Now().Truncate(pass.interval)
			if bucket.Equal(last[name]) {
				continue
			}
			err := pass.enqueue(ctx, name, bucket, pass.interval)
			failed("the "+name+" pass", err)
			if name == passExpire && redisclient.Full(err) {
				room.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, r.cfg.ExpireEvery)
					defer cancel()
					failed("making room in a full Redis", r.once(ctx, name, r.makeRoom))
				})
				err = nil // until the next interval
			}
			if err == nil {
				last[name] = bucket
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Pass runs one pass, unless this process is running it already: a pass that takes longer than its interval must not
// fill every slot.
func (r *Runner) Pass(ctx context.Context, name string) error {
	pass := map[string]func(context.Context) error{
		passExpire: r.Expire, passRescue: r.Rescue, passSweep: r.Sweep,
	}[name]
	if pass == nil {
		return fmt.Errorf("unknown pass %q", name) // of a newer scheduler, which will run it
	}
	return r.once(ctx, name, pass)
}

// once runs the pass unless this process is running one of the name.
func (r *Runner) once(ctx context.Context, name string, pass func(context.Context) error) error {
	if _, running := r.running.LoadOrStore(name, true); running {
		return nil
	}
	defer r.running.Delete(name)
	err := pass(ctx)
	r.passed(name, err)
	return err
}

// jobLogger is the logger for lines about a job, whose record may be gone.
func (r *Runner) jobLogger(id export.JobID, job export.Job) *slog.Logger {
	return telemetry.WithTrace(r.Logger.With("job_id", id), job.Trace)
}

// passed counts a pass.
func (r *Runner) passed(name string, err error) {
	if err != nil {
		r.metrics.passes.WithLabelValues(name, "failed").Inc()
		return
	}
	r.metrics.passes.WithLabelValues(name, "done").Inc()
	r.metrics.lastPass.WithLabelValues(name).Set(float64(r.Now().UnixMilli()) / 1000)
}

type metrics struct {
	expired, purged, rescued, orphans, aborted prometheus.Counter
	failed                                     prometheus.Counter
	purgeLag                                   prometheus.Gauge
	passes                                     *prometheus.CounterVec
	lastPass                                   *prometheus.GaugeVec
	gauges                                     gauges
}

func newMetrics(registry prometheus.Registerer, started time.Time) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := metrics{
		expired: counter("sluice_scheduler_expired_jobs_total", "Jobs marked expired."),
		purged:  counter("sluice_scheduler_purged_jobs_total", "Jobs purged."),
		rescued: counter("sluice_scheduler_rescued_units_total", "Units whose worker or task was lost."),
		orphans: counter("sluice_scheduler_orphaned_objects_total", "Orphaned objects deleted."),
		aborted: counter("sluice_scheduler_orphaned_uploads_total", "Orphaned uploads aborted."),
		purgeLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_scheduler_purge_lag_seconds", Help: "How long the next job to expire or purge is overdue.",
		}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scheduler_passes_total", Help: "Passes of each kind by outcome.",
		}, []string{"duty", "outcome"}),
		lastPass: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_last_pass_timestamp_seconds",
			Help: "When this scheduler last finished a pass, in Unix time; at first, when it started.",
		}, []string{"duty"}),
		failed: counter("sluice_scheduler_failed_jobs_total", "Jobs given up because they took too long."),
		gauges: newGauges(registry),
	}
	for _, pass := range []string{passExpire, passRescue, passSweep, passSurvey} {
		m.passes.WithLabelValues(pass, "done")
		m.passes.WithLabelValues(pass, "failed")
		m.lastPass.WithLabelValues(pass).Set(float64(started.UnixMilli()) / 1000)
	}
	registry.MustRegister(m.expired, m.purged, m.rescued, m.orphans, m.aborted, m.purgeLag, m.passes, m.lastPass, m.failed)
	return m
}
