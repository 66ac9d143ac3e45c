package httpapi

import (
	"context"
	"net/http"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
)

// Where the probes are.
const (
	livePath  = "/livez"
	readyPath = "/readyz"
)

// checker is a directory that can say cheaply whether it can be used. It is optional: one that cannot say so is left
// out of readiness.
type checker interface {
	Check(ctx context.Context) error
}

// Checks names the API's dependencies and how to ask each whether it can be used (pitfall 34).
func (p Parts) Checks() health.Checks {
	checks := health.Checks{"job_store": p.Jobs.Ping, "queue": p.Queue.Ping, "object_store": p.Objects.Check}
	if groups, ok := p.Groups.(checker); ok {
		checks["groups"] = groups.Check
	}
	if access, ok := p.Access.(checker); ok {
		checks["access"] = access.Check
	}
	return checks
}

// Private returns the handler of the operators' routes: probes, metrics and profiles. It belongs on a listener that
// only they reach; of these New serves the probes alone.
func Private(parts Parts) http.Handler { return health.Handler(parts.Checks(), parts.Registry) }
