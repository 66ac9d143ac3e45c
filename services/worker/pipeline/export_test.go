package pipeline

import (
	"context"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Cut is what the plan cuts units with.
var Cut = cut

// Unsettled does a unit's work and records nothing: what a worker has done that dies before it commits.
func (w *Worker) Unsettled(ctx context.Context, lease export.Lease) (jobstore.Commit, error) {
	return w.run(ctx, lease)
}
