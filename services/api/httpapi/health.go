package httpapi

import (
	"net/http"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

// Where the probes and the metrics are.
const (
	livePath    = "/livez"
	readyPath   = "/readyz"
	metricsPath = "/metrics"
)

// Checks names the API's dependencies and how to ask each whether it can be used (PITFALLS 34).
func (p Parts) Checks() platform.Checks {
	return platform.Checks{"job_store": p.Jobs.Ping, "queue": p.Queue.Ping, "object_store": p.Objects.Check}
}

// Private returns the handler of the operators' routes alone, for a listener of their own. New serves them too.
func Private(parts Parts) http.Handler { return platform.Health(parts.Checks(), parts.Registry) }
