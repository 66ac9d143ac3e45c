package ops

import (
	"context"
	"errors"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// outcome sums up what the closed units of a job did not export. It counts as the seal does for the owner.
type outcome struct {
	left     export.Tally
	failed   int
	patients int64 // Patient resources that were found
	sought   bool  // some units looked for them
	lost     bool  // one of these failed
}

func (o *outcome) add(unit export.Unit, result export.Result) {
	if unit.Type == "Patient" {
		o.sought, o.lost = true, o.lost || result.Failure != ""
		o.patients += result.Withheld
		for _, file := range result.Files {
			o.patients += file.Count
		}
	}
	if result.Failure != "" {
		o.failed++
	}
	o.left.AddAll(result.LeftOut)
	if len(result.LeftOut) == 0 { // by a worker of the previous release
		o.left.Add(unit.Type, export.OtherPatient, result.Withheld)
	}
}

// leftOut returns what is left out. The members that the data does not have are known when the job is completed.
func (o *outcome) leftOut(job export.Job) []export.LeftOut {
	if job.State == export.Completed && o.sought && !o.lost {
		o.left.Add("", export.MemberMissing, max(job.Cohort.Patients-o.patients, 0))
	}
	return o.left.List()
}

// incomplete reports whether the list of what is left out, or a failed unit, means that data is missing.
func (o *outcome) incomplete(left []export.LeftOut) bool {
	return o.failed > 0 || slices.ContainsFunc(left, export.LeftOut.Warning)
}

// MarkIncomplete sets Incomplete of the completed jobs. known has the jobs of earlier calls, which do not change, and gets
// these; nil: there are none. The first call for a job reads the result of its seal, and if that has a file of errors, all
// results of the job.
func (o *Operator) MarkIncomplete(ctx context.Context, jobs []Job, known map[export.JobID]bool) error {
	for i, job := range jobs {
		if job.State != export.Completed {
			continue
		}
		incomplete, ok := known[job.ID]
		if !ok {
			var err error
			incomplete, err = o.readIncomplete(ctx, job.ID)
			if errors.Is(err, export.ErrNotFound) { // removed meanwhile
				continue
			}
			if err != nil {
				return err
			}
			if known != nil {
				known[job.ID] = incomplete
			}
		}
		jobs[i].Incomplete = incomplete
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
	var sum outcome
	err = o.Jobs.Results(ctx, id, func(unit export.Unit, result export.Result) error {
		sum.add(unit, result)
		return nil
	})
	return sum.incomplete(sum.leftOut(job)), err
}
