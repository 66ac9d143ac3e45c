// Package pipeline is what a worker does. Each file is a stage of a job's life: handle (claim, keep alive, settle),
// plan, export (with guard and write), references, seal.
//
// A stage never changes a job on its own. It makes objects under its own fence and returns a commit, which settle
// hands to the job store; whoever lost the fence in the meantime has made garbage that nobody sees.
package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// Config says how a worker works. Use Defaults and change what differs.
type Config struct {
	// NDJSON bytes of a unit of a small job, estimated; a large job has about a thousand units
	UnitBytes int64 `env:"UNIT_BYTES"`
	UnitMost  int64 `env:"UNIT_BYTES_MOST"` // upper bound of the same for a job of any size
	FileBytes int64 `env:"FILE_BYTES"`      // NDJSON bytes after which the next file begins
	// units of one job that are queued or running at once; 0: twice the slots of all workers, at least 16; the
	// same for worker and scheduler
	Outstanding int           `env:"UNITS_OUTSTANDING"`
	MaxAttempts int           `env:"UNIT_ATTEMPTS"`  // failures after which a unit is given up
	Heartbeat   time.Duration `env:"UNIT_HEARTBEAT"` // interval of the heartbeats of a running unit
	// retry delay while a dependency is unavailable; an outage costs no attempt
	OutageDelay time.Duration `env:"OUTAGE_DELAY"`
	// how long an ended job is kept (spec 6); the same for worker and scheduler
	Retention time.Duration `env:"RETENTION"`
}

// Defaults are the values that suit a production deployment.
func Defaults() Config {
	return Config{
		UnitBytes:   256 << 20,
		UnitMost:    8 << 30,
		FileBytes:   512 << 20,
		MaxAttempts: 5,
		Heartbeat:   4 * time.Second,
		OutageDelay: 10 * time.Second,
		Retention:   168 * time.Hour,
	}
}

// Validate refuses a configuration that cannot work.
func (c Config) Validate() error {
	var errs []error
	positive := func(name string, ok bool) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s must be more than zero", name))
		}
	}
	positive("unit bytes", c.UnitBytes > 0)
	positive("most unit bytes", c.UnitMost > 0)
	if c.Outstanding < 0 {
		errs = append(errs, errors.New("outstanding units must not be negative"))
	}
	positive("file bytes", c.FileBytes > 0)
	positive("attempts", c.MaxAttempts > 0)
	positive("heartbeat", c.Heartbeat > 0)
	positive("outage delay", c.OutageDelay > 0)
	positive("retention", c.Retention > 0)
	return errors.Join(errs...)
}

// Deps are the stores and services that a worker uses.
type Deps struct {
	Jobs     *jobstore.Store
	Queue    *queue.Client
	Objects  *objects.Store
	Source   source.Source
	Groups   directory.Groups
	Access   directory.Access
	Now      func() time.Time
	Logger   *slog.Logger
	Registry prometheus.Registerer
	Tracing  *telemetry.Tracing // nil: nothing is traced
}

// Worker works on units. It has no state between them but what it need not read again: any number run anywhere.
type Worker struct {
	Deps
	lifecycle  *jobs.Lifecycle
	cfg        Config
	lists      *spillset.Cache
	shortUnits activeShortUnits
	metrics    metrics
}

// New returns a worker.
func New(cfg Config, deps Deps) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return &Worker{
		Deps: deps, cfg: cfg, lists: spillset.NewCache(), metrics: newMetrics(deps.Registry),
		lifecycle: &jobs.Lifecycle{
			Store: deps.Jobs, Queue: deps.Queue, Now: deps.Now, Retention: cfg.Retention, Outstanding: cfg.Outstanding,
		},
	}, nil
}

type metrics struct {
	units     *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	resources *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	stored    *prometheus.CounterVec
	jobs      *prometheus.CounterVec
	busy      prometheus.Gauge
	committed prometheus.Gauge
	refusals  prometheus.Counter
	withheld  prometheus.Counter
	fenced    prometheus.Counter
	gaveUp    prometheus.Counter
}

// How a worker ends a job.
const (
	jobCompleted = "completed"
	jobFailed    = "failed"
)

func newMetrics(registry prometheus.Registerer) metrics {
	m := metrics{
		units: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_units_total", Help: "Attempts at units by how they ended.",
		}, []string{"kind", "type", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_worker_unit_seconds", Help: "Time from claim to settlement of a unit.",
			Buckets: prometheus.ExponentialBuckets(0.05, 3, 10),
		}, []string{"kind"}),
		resources: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_resources_total", Help: "Resources written to files.",
		}, []string{"type"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_ndjson_bytes_total", Help: "NDJSON bytes written, before compression.",
		}, []string{"type"}),
		stored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_stored_bytes_total", Help: "Bytes of files as the object store confirmed them, gzipped.",
		}, []string{"type"}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_jobs_total", Help: "Jobs that this worker has brought to their end.",
		}, []string{"outcome"}),
		busy: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_worker_busy_units", Help: "Units that this worker is working on.",
		}),
		committed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_worker_last_commit_timestamp_seconds",
			Help: "When this worker last committed a unit, in Unix time; 0: not yet.",
		}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_worker_guard_refusals_total", Help: "Lines refused because they are not about the cohort.",
		}),
		withheld: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_worker_withheld_total", Help: "Resources left out because they also name another patient.",
		}),
		gaveUp: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_worker_given_up_units_total", Help: "Units that became an entry of their manifest's error list.",
		}),
		fenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_worker_fence_losses_total", Help: "Units that found their fence stale.",
		}),
	}
	// There from the beginning, so that the first one shows as an increase.
	for _, outcome := range []string{jobCompleted, jobFailed} {
		m.jobs.WithLabelValues(outcome)
	}
	registry.MustRegister(m.units, m.duration, m.resources, m.bytes, m.stored, m.refusals, m.withheld, m.fenced, m.jobs,
		m.busy, m.committed, m.gaveUp)
	return m
}
