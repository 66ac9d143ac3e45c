// Package pipeline runs the units of export jobs. Each file is a stage: handle (claim, heartbeat, record), plan, export
// (with guard and write), references, seal.
//
// A stage does not change the job. It writes objects under its own fence and returns a commit for the job store. The
// objects of an attempt that lost its fence are never listed, and the sweep deletes them.
package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// Config holds the settings of a worker.
type Config struct {
	// NDJSON bytes of a unit of a small job, estimated; a large job has about a thousand units
	UnitBytes int64 `env:"UNIT_BYTES" envDefault:"268435456"`
	// upper bound of a unit's NDJSON bytes, for a job of any size
	UnitMost int64 `env:"UNIT_BYTES_MOST" envDefault:"8589934592"`
	// NDJSON bytes after which the next file begins
	FileBytes int64 `env:"FILE_BYTES" envDefault:"536870912"`
	// failures after which a unit is given up
	MaxAttempts int `env:"UNIT_ATTEMPTS" envDefault:"5"`
	// interval of the heartbeats of a running unit
	Heartbeat time.Duration `env:"UNIT_HEARTBEAT" envDefault:"4s"`
	// retry delay while a dependency is unavailable; an outage costs no attempt
	OutageDelay time.Duration `env:"OUTAGE_DELAY" envDefault:"10s"`
	// withhold or export: resources of a patient of the export that are also about somebody who cannot be identified and
	// may be another patient, such as one named by an identifier
	UnresolvedSubjects string `env:"UNRESOLVED_SUBJECTS" envDefault:"withhold"`
	jobs.Settings
}

// exportThem is the value of UnresolvedSubjects that does not withhold.
const exportThem = "export"

// Validate returns every problem of the settings.
func (c Config) Validate() error {
	errs := []error{c.Settings.Validate()}
	if c.UnresolvedSubjects != "withhold" && c.UnresolvedSubjects != exportThem {
		errs = append(errs, errors.New("SLUICE_UNRESOLVED_SUBJECTS must be withhold or export"))
	}
	for _, setting := range []struct {
		name     string
		positive bool
	}{
		{"UNIT_BYTES", c.UnitBytes > 0}, {"UNIT_BYTES_MOST", c.UnitMost > 0}, {"FILE_BYTES", c.FileBytes > 0},
		{"UNIT_ATTEMPTS", c.MaxAttempts > 0}, {"UNIT_HEARTBEAT", c.Heartbeat > 0}, {"OUTAGE_DELAY", c.OutageDelay > 0},
	} {
		if !setting.positive {
			errs = append(errs, fmt.Errorf("SLUICE_%s must be positive", setting.name))
		}
	}
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
	Bases    fhir.Bases // absolute references below them are local
	Now      func() time.Time
	Logger   *slog.Logger
	Registry prometheus.Registerer
	Tracing  *telemetry.Tracing // nil: no tracing
}

// Worker runs units. It keeps only caches between units, so any number of workers can run at the same time.
type Worker struct {
	Deps
	lifecycle  *jobs.Lifecycle
	cfg        Config
	lists      *spillset.Cache
	shortUnits activeShortUnits
	metrics    metrics

	blockMemory, companionMemory int64 // bytes
}

// New returns a worker.
func New(cfg Config, deps Deps) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return &Worker{
		Deps: deps, cfg: cfg, lists: spillset.NewCache(), metrics: newMetrics(deps.Registry),
		blockMemory: blockMemory, companionMemory: companionMemory,
		lifecycle: &jobs.Lifecycle{Store: deps.Jobs, Queue: deps.Queue, Now: deps.Now, Settings: cfg.Settings},
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
	withheld  *prometheus.CounterVec
	leftOut   *prometheus.GaugeVec
	fenced    prometheus.Counter
	gaveUp    prometheus.Counter
}

// Outcomes of jobs.
const (
	jobCompleted = "completed"
	jobFailed    = "failed"
)

func newMetrics(registry prometheus.Registerer) metrics {
	auto := promauto.With(registry)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := metrics{
		units: counters("sluice_worker_units_total", "Attempts at units, by outcome.", "kind", "type", "outcome"),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_worker_unit_seconds", Help: "Time from claim to settlement of a unit.",
			Buckets: prometheus.ExponentialBuckets(0.05, 3, 10),
		}, []string{"kind"}),
		resources: counters("sluice_worker_resources_total", "Resources written to files.", "type"),
		bytes:     counters("sluice_worker_ndjson_bytes_total", "NDJSON bytes written, before compression.", "type"),
		stored:    counters("sluice_worker_stored_bytes_total", "Gzipped bytes that the object store confirmed.", "type"),
		jobs:      counters("sluice_worker_jobs_total", "Jobs that this worker completed or failed.", "outcome"),
		busy:      gauge("sluice_worker_busy_units", "Units that this worker runs."),
		committed: gauge("sluice_worker_last_commit_timestamp_seconds",
			"Unix time of this worker's last commit; 0: none yet."),
		refusals: counter("sluice_worker_guard_refusals_total", "Lines refused because they do not belong to the cohort."),
		withheld: counters("sluice_worker_withheld_total",
			"Resources of a patient of an export that were left out of it, by reason.", "reason"),
		gaveUp: counter("sluice_worker_given_up_units_total", "Units given up; each is an entry of its manifest's error list."),
		fenced: counter("sluice_worker_fence_losses_total", "Tasks with a stale fence."),
	}
	m.leftOut = auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_source_left_out", Help: "What no export of a group or of patients contains, by reason.",
	}, []string{"type", "reason"})
	// Initialised, so that the first one is visible as an increase.
	for _, reason := range []export.Reason{export.OtherPatient, export.UnknownPatient} {
		m.withheld.WithLabelValues(string(reason))
	}
	for _, outcome := range []string{jobCompleted, jobFailed} {
		m.jobs.WithLabelValues(outcome)
	}
	return m
}
