package pipeline

import (
	"context"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Cut exposes cut.
var Cut = cut

// Unsettled runs a unit and records nothing, like a worker that dies before its commit.
func (w *Worker) Unsettled(ctx context.Context, lease export.Lease) (jobstore.Commit, error) {
	return w.run(ctx, w.Logger, lease)
}
