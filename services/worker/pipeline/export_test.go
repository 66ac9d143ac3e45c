package pipeline

import (
	"context"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Cut exposes cut, for a grant of every type.
func Cut(request export.Request, everybody bool, sizes source.Sizes, cohort export.Cohort, cfg Config) []export.Unit {
	grant := directory.Grant{Types: directory.Everything()}
	return cut(request, selection{grant: grant, everybody: everybody, cohort: cohort}, sizes, cfg)
}

// Unsettled runs a unit and records nothing, like a worker that dies before its commit.
func (w *Worker) Unsettled(ctx context.Context, lease export.Lease) (jobstore.Commit, error) {
	return w.run(ctx, w.Logger, lease)
}

// SetMemory sets what blocks and companions may need in memory, in bytes.
func (w *Worker) SetMemory(blocks, companions int64) {
	w.blockMemory, w.companionMemory = blocks, companions
}
