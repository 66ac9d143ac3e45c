package pipeline

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// selection is what storeCohort has selected.
type selection struct {
	// grant is the one that the members were selected by. Its types count as well, not those of an earlier read, because a
	// mix of two versions of a grant may allow more than either.
	grant     directory.Grant
	everybody bool // the grant includes every patient
	cohort    export.Cohort
	leftOut   []export.LeftOut // members that the directory left out

	// Of an incremental export: those of the cohort who joined, whether the references of all data count, and else what leads
	// to referenced resources that changed.
	joinedCount int64
	followAll   bool
	leading     spillset.Stored
}

// storeCohort stores the candidates of the job's level that the owner may see and, if the request names patients, that it
// names.
func (w *Worker) storeCohort(
	ctx context.Context, lease export.Lease, job export.Job, snapshot time.Time, few *directory.Selection,
) (chosen selection, err error) {
	ctx, span := telemetry.StartSpan(ctx, "cohort")
	defer func() {
		span.SetAttributes(attribute.Int64("sluice.patients", chosen.cohort.Patients))
		telemetry.EndSpan(span, err)
	}()
	prefix := export.CohortPrefix(job.ID, lease.Fence)
	candidates, leftOut, err := w.candidates(ctx, job, snapshot, few, prefix)
	if err := streamError(ctx, err); err != nil {
		return selection{}, err
	}
	chosen.leftOut = leftOut
	cohort := &chosen.cohort
	cohort.Prefix = prefix
	err = w.Access.Patients(ctx, job.Owner, func(read directory.Grant, patients *directory.PatientFilter) (err error) {
		if err := checkGrant(job, read); err != nil {
			return err
		}
		chosen.grant = read
		if chosen.everybody, err = patients.Everybody(); err != nil {
			return err
		}
		if job.Request.Asked != nil {
			chosen.leftOut = nil // it is about others
		}
		for i := range chosen.leftOut {
			if !chosen.everybody {
				chosen.leftOut[i].Count = 0 // members that the owner may not see
			}
		}
		list, err := spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error {
			return candidates(func(patient string) error {
				if included, err := patients.Includes(patient); err != nil || !included {
					return err
				}
				return yield(patient)
			})
		})
		cohort.Chunks, cohort.Patients, cohort.Digest = list.Chunks, list.Count, list.Digest
		return err
	})
	if err := streamError(ctx, err); err != nil {
		return selection{}, fmt.Errorf("store the cohort: %w", err)
	}
	return chosen, nil
}

// asked returns the patients that the request names, ascending; nil if it names none.
func (w *Worker) asked(ctx context.Context, job export.Job) ([]string, error) {
	stored := job.Request.Asked
	if stored == nil {
		return nil, nil
	}
	ids, err := spillset.ReadIDs(ctx, w.Objects, stored.Key, stored.SHA256)
	if err != nil {
		return nil, fmt.Errorf("read the patients of the request: %w", err)
	}
	return ids, nil
}

// patientSeq yields ids of patients in ascending order, each once.
type patientSeq func(yield func(string) error) error

// candidates returns the patients of the job's level: the members of the group, or all that the source holds. Those of a
// request that names patients are among the named ones. few, if it is not nil, selects those that the owner may see.
// Members are sorted below the prefix. leftOut are the members that the directory left out.
func (w *Worker) candidates(
	ctx context.Context, job export.Job, snapshot time.Time, few *directory.Selection, prefix string,
) (_ patientSeq, leftOut []export.LeftOut, err error) {
	asked, err := w.asked(ctx, job)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case job.Request.AtLevel() == export.GroupLevel:
		members := spillset.NewBuilder(w.Objects, prefix)
		leftOut, err = w.Groups.Members(ctx, job.Request.GroupID, func(patient string) error {
			if !fhir.IsID(patient) || few != nil && !few.Has(patient) { // few keeps a large group out of the sort
				return nil
			}
			if _, named := slices.BinarySearch(asked, patient); job.Request.Asked != nil && !named {
				return nil
			}
			return members.Add(ctx, patient)
		})
		if err != nil {
			return nil, nil, fmt.Errorf("resolve the group: %w", err)
		}
		return func(yield func(string) error) error { return members.Each(ctx, yield) }, leftOut, nil
	case job.Request.Asked != nil:
		return func(yield func(string) error) error {
			for _, patient := range asked {
				if err := yield(patient); err != nil {
					return err
				}
			}
			return nil
		}, nil, nil
	}
	return func(yield func(string) error) error { return w.Source.Patients(ctx, snapshot, yield) }, nil, nil
}
