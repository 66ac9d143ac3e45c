package ops

import (
	"context"
	"errors"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// leftOut returns what the units of the job left out, as the owner is told.
func leftOut(job export.Job, units export.Shortfall) []export.LeftOut {
	if job.State == export.Completed {
		return units.LeftOutOf(job)
	}
	return units.LeftOut()
}

// incomplete reports whether the list of what is left out, or a failed unit, means that data is missing.
func incomplete(units export.Shortfall, left []export.LeftOut) bool {
	return units.Failed > 0 || slices.ContainsFunc(left, export.LeftOut.Warning)
}

// MarkIncomplete sets Incomplete of the completed jobs. known has the jobs of earlier calls, which do not change, and gets
// these; nil: there are none. The first call for a job reads the result of its seal, and if that has a file of errors, all
// results of the job.
func (o *Operator) MarkIncomplete(ctx context.Context, jobs []Job, known map[export.JobID]bool) error {
	for i, job := range jobs {
		if job.State != export.Completed {
			continue
		}
		missing, ok := known[job.ID]
		if !ok {
			var err error
			missing, err = o.readIncomplete(ctx, job.ID)
			if errors.Is(err, export.ErrNotFound) { // removed meanwhile
				continue
			}
			if err != nil {
				return err
			}
			if known != nil {
				known[job.ID] = missing
			}
		}
		jobs[i].Incomplete = missing
	}
	return nil
}

func (o *Operator) readIncomplete(ctx context.Context, id export.JobID) (bool, error) {
	seal, err := o.Jobs.Result(ctx, id, export.SealUnit)
	if err != nil || !slices.ContainsFunc(seal.Files, func(f export.File) bool { return f.Error }) {
		return false, err
	}
	job, err := o.Jobs.Job(ctx, id)
	if err != nil {
		return false, err
	}
	var units export.Shortfall
	err = o.Jobs.Results(ctx, id, func(unit export.Unit, result export.Result) error {
		units.Add(unit, result)
		return nil
	})
	return incomplete(units, leftOut(job, units)), err
}
