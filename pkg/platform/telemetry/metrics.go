package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a metrics registry with the metrics of the process and the Go runtime.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Observer receives each finished call to a dependency: the class of the operation, such as "read" or "write", its start,
// and its error. It may be called from any goroutine. Call it through Observe, which accepts a nil Observer.
type Observer func(operation string, began time.Time, err error)

// Observe reports a call. A call that its caller cancelled does not count as failed.
func (o Observer) Observe(operation string, began time.Time, err error) {
	if o == nil {
		return
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	o(operation, began, err)
}

// Dependencies measures calls to the dependencies of a process.
type Dependencies struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

// NewDependencies registers sluice_dependency_seconds and sluice_dependency_errors_total, both by dependency and operation.
func NewDependencies(registry prometheus.Registerer) *Dependencies {
	labels := []string{"dependency", "operation"}
	d := &Dependencies{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_dependency_seconds", Help: "Duration of calls of a dependency, including failed calls.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_dependency_errors_total", Help: "Failed calls of a dependency.",
		}, labels),
	}
	registry.MustRegister(d.seconds, d.errors)
	return d
}

// Observer returns the Observer of the named dependency, nil for nil Dependencies.
func (d *Dependencies) Observer(name string) Observer {
	if d == nil {
		return nil
	}
	return func(operation string, began time.Time, err error) {
		d.seconds.WithLabelValues(name, operation).Observe(time.Since(began).Seconds())
		failed := d.errors.WithLabelValues(name, operation) // exists from the first call, so that rate() sees the first error
		if err != nil {
			failed.Inc()
		}
	}
}

// NewLogger returns the process's logger: one JSON object per line, with the service's name.
func NewLogger(w io.Writer, service string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service", service)
}

// WithTrace adds the trace id of a W3C traceparent to the logger, if there is one.
func WithTrace(log *slog.Logger, parent string) *slog.Logger {
	if id := TraceID(parent); id != "" {
		return log.With("trace_id", id)
	}
	return log
}
