// Package maintenance is what the scheduler does: expire finished jobs, purge ended ones, rescue units whose worker or task
// was lost, and sweep objects that belong to nothing.
//
// Every duty is a single pass that may be killed at any instruction, run twice, or run by several schedulers at once. A
// tick only enqueues a duty; whichever scheduler takes the task does the pass.
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
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// The duties.
const (
	dutyExpire = "expire"
	dutyRescue = "rescue"
	dutySweep  = "sweep"
)

// dutySurvey is done by every scheduler for itself and by no task.
const dutySurvey = "survey"

// Config says when what is done. Use Defaults and change what differs.
type Config struct {
	ExpireEvery time.Duration `env:"EXPIRE_EVERY"` // interval of expiry and purge
	RescueEvery time.Duration `env:"RESCUE_EVERY"` // interval of the search for silent units
	SweepEvery  time.Duration `env:"SWEEP_EVERY"`  // interval of the search for orphaned objects
	SurveyEvery time.Duration `env:"SURVEY_EVERY"` // interval of the count of all jobs, for the metrics
	// a unit without a heartbeat for this long is lost; several UNIT_HEARTBEATs
	Silence    time.Duration `env:"UNIT_SILENCE"`
	SweepGrace time.Duration `env:"SWEEP_GRACE"` // younger objects are never orphans
	MaxAge     time.Duration `env:"JOB_MAX_AGE"` // an unfinished job fails at this age
	// how long an ended job is kept (spec 6); the same for worker and scheduler
	Retention time.Duration `env:"RETENTION"`
	// units of one job that are queued or running at once; 0: twice the slots of all workers, at least 16; the
	// same for worker and scheduler
	Outstanding int `env:"UNITS_OUTSTANDING"`
}

// Defaults are the values that suit a production deployment.
func Defaults() Config {
	return Config{
		ExpireEvery: 30 * time.Second,
		RescueEvery: 3 * time.Second,
		SweepEvery:  time.Hour,
		SurveyEvery: 15 * time.Second,
		Silence:     20 * time.Second,
		SweepGrace:  time.Hour,
		MaxAge:      72 * time.Hour,
		Retention:   168 * time.Hour,
	}
}

// Validate refuses a configuration that cannot work.
func (c Config) Validate() error {
	var errs []error
	for name, d := range map[string]time.Duration{
		"expire interval": c.ExpireEvery, "rescue interval": c.RescueEvery, "sweep interval": c.SweepEvery,
		"survey interval": c.SurveyEvery,
		"silence":         c.Silence, "job age": c.MaxAge, "retention": c.Retention,
	} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s must be more than zero", name))
		}
	}
	if c.SweepGrace < 0 {
		errs = append(errs, errors.New("sweep grace must not be negative"))
	}
	if c.Outstanding < 0 {
		errs = append(errs, errors.New("outstanding units must not be negative"))
	}
	return errors.Join(errs...)
}

// Parts are what the scheduler works with.
type Parts struct {
	Jobs     *jobstore.Store
	Queue    *queue.Client
	Objects  *objects.Store
	Audit    *audit.Log
	Now      func() time.Time
	Logger   *slog.Logger
	Registry prometheus.Registerer
	Tracing  *telemetry.Tracing // nil: nothing is traced
}

// Upkeep does the duties.
type Upkeep struct {
	Parts
	cfg     Config
	metrics metrics
	busy    sync.Map // duties under way in this process
}

// New returns an Upkeep.
func New(cfg Config, parts Parts) (*Upkeep, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	return &Upkeep{Parts: parts, cfg: cfg, metrics: newMetrics(parts.Registry, parts.Now())}, nil
}

// Tick enqueues the duties at their intervals until the context ends.
func (u *Upkeep) Tick(ctx context.Context) error {
	duties := map[string]struct {
		interval time.Duration
		enqueue  func(ctx context.Context, duty string, bucket time.Time, interval time.Duration) error
	}{
		dutyExpire: {u.cfg.ExpireEvery, u.Queue.EnqueueTick},
		dutySweep:  {u.cfg.SweepEvery, u.Queue.EnqueueTick},
		dutyRescue: {u.cfg.RescueEvery, u.Queue.EnqueueWatch},
	}
	last := map[string]time.Time{}
	ticker := time.NewTicker(min(u.cfg.ExpireEvery, u.cfg.RescueEvery, u.cfg.SweepEvery, time.Second))
	defer ticker.Stop()
	for {
		for duty, how := range duties {
			bucket := u.Now().Truncate(how.interval)
			if bucket.Equal(last[duty]) {
				continue
			}
			if err := how.enqueue(ctx, duty, bucket, how.interval); err != nil {
				u.Logger.Warn("tick is not enqueued", "duty", duty, "err", err)
				continue
			}
			last[duty] = bucket
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Do runs one pass of a duty, unless this process is at it already: a pass that takes longer than its interval, because
// a store is slow, must not fill all places with its like.
func (u *Upkeep) Do(ctx context.Context, duty string) error {
	pass := map[string]func(context.Context) error{
		dutyExpire: u.ExpireAndPurge, dutyRescue: u.Rescue, dutySweep: u.Sweep,
	}[duty]
	switch _, busy := u.busy.LoadOrStore(duty, true); {
	case busy:
		return nil
	case pass != nil:
		defer u.busy.Delete(duty)
		err := pass(ctx)
		u.passed(duty, err)
		return err
	default:
		defer u.busy.Delete(duty)
		return fmt.Errorf("unknown duty %q", duty) // of a newer scheduler: its own kind will do it
	}
}

// about is the logger for lines about a job, of which there may be no record any more.
func (u *Upkeep) about(id export.JobID, job export.Job) *slog.Logger {
	return telemetry.WithTrace(u.Logger.With("job_id", id), job.Trace)
}

// passed counts a pass.
func (u *Upkeep) passed(duty string, err error) {
	if err != nil {
		u.metrics.passes.WithLabelValues(duty, "failed").Inc()
		return
	}
	u.metrics.passes.WithLabelValues(duty, "done").Inc()
	u.metrics.lastPass.WithLabelValues(duty).Set(float64(u.Now().UnixMilli()) / 1000)
}

// gone reports whether an error says that the job has ended or is not there any more, which is nothing to worry about.
func gone(err error) bool {
	return errors.Is(err, export.ErrNotFound) || errors.Is(err, export.ErrConflict) ||
		errors.Is(err, export.ErrNotLive) || errors.Is(err, export.ErrFenced)
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
		rescued: counter("sluice_scheduler_rescued_units_total", "Units that had lost their worker."),
		orphans: counter("sluice_scheduler_orphaned_objects_total", "Objects that belonged to nothing, deleted."),
		aborted: counter("sluice_scheduler_orphaned_uploads_total", "Unfinished uploads that belonged to nothing, aborted."),
		purgeLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_scheduler_purge_lag_seconds", Help: "How long overdue the next job to purge is.",
		}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scheduler_passes_total", Help: "Passes of each duty by how they ended.",
		}, []string{"duty", "outcome"}),
		lastPass: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_last_pass_timestamp_seconds",
			Help: "When this scheduler last did a duty to the end, in Unix time; at first, when it started.",
		}, []string{"duty"}),
		failed: counter("sluice_scheduler_failed_jobs_total", "Jobs given up because they took too long."),
		gauges: newGauges(registry),
	}
	for _, duty := range []string{dutyExpire, dutyRescue, dutySweep, dutySurvey} {
		m.passes.WithLabelValues(duty, "done")
		m.passes.WithLabelValues(duty, "failed")
		m.lastPass.WithLabelValues(duty).Set(float64(started.UnixMilli()) / 1000)
	}
	registry.MustRegister(m.expired, m.purged, m.rescued, m.orphans, m.aborted, m.purgeLag, m.passes, m.lastPass, m.failed)
	return m
}
