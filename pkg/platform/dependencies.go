package platform

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Observer is told of each call of a dependency when it is over: its class, such as "read" or "write", when it began,
// and why it failed, or nil. It may be called from any goroutine. A nil Observer is told nothing; see Tell.
type Observer func(operation string, began time.Time, err error)

// Tell tells the observer, if there is one. A call that its caller gave up says nothing about the dependency, and does
// not count as failed.
func (o Observer) Tell(operation string, began time.Time, err error) {
	if o == nil {
		return
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	o(operation, began, err)
}

// Dependencies measures the calls of what a process depends on.
type Dependencies struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

// NewDependencies registers sluice_dependency_seconds and sluice_dependency_errors_total, both by dependency and class of
// operation.
func NewDependencies(registry prometheus.Registerer) *Dependencies {
	labels := []string{"dependency", "operation"}
	d := &Dependencies{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_dependency_seconds", Help: "Time that calls of a dependency took, failed ones included.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_dependency_errors_total", Help: "Calls of a dependency that failed.",
		}, labels),
	}
	registry.MustRegister(d.seconds, d.errors)
	return d
}

// Observer returns the observer of the dependency of that name; nil without Dependencies.
func (d *Dependencies) Observer(name string) Observer {
	if d == nil {
		return nil
	}
	return func(operation string, began time.Time, err error) {
		d.seconds.WithLabelValues(name, operation).Observe(time.Since(began).Seconds())
		failed := d.errors.WithLabelValues(name, operation) // there from the first call on, so that the first error shows
		if err != nil {
			failed.Inc()
		}
	}
}
