package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.opentelemetry.io/otel/attribute"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// plan freezes the snapshot, works out the cohort (the group's members that the owner may see), and cuts one unit for
// each type, more for a type that is too big for one (spec 8). An empty cohort has no units: it is never everybody.
func (w *Worker) plan(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	// The source gives it in whole seconds, as it is shown to IG clients: nothing newer than what they are told is
	// exported (M-01).
	snapshot, err := w.Source.Snapshot(ctx, w.Now())
	if err != nil {
		return jobstore.Commit{}, fmt.Errorf("freeze the snapshot: %w", err)
	}

	grant, err := w.Access.Grant(ctx, job.Owner)
	if err != nil {
		return jobstore.Commit{}, err
	}
	types := allowed(job, grant)
	if !grant.Groups.Has(job.Request.GroupID) || len(types) == 0 {
		return jobstore.Commit{}, export.Permanent("the permission for it was withdrawn")
	}

	cohort, err := w.storeCohort(ctx, lease, job, grant)
	if errors.Is(err, directory.ErrNoGroup) {
		return jobstore.Commit{}, export.Permanent("the group can no longer be exported")
	}
	if err != nil {
		return jobstore.Commit{}, err
	}

	var units []export.Unit
	var result export.Result
	if cohort.Patients > 0 {
		sizes, err := w.Source.Sizes(ctx)
		if err != nil {
			return jobstore.Commit{}, fmt.Errorf("size up the source: %w", err)
		}
		units = cut(types, sizes, cohort, w.cfg)
		withdrawn := slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool {
			// With units there is a references unit, which asks again and reports the referenced types.
			return slices.Contains(types, typ) || fhir.IsReferenced(typ) && len(units) > 0
		})
		if result.Files, err = w.reportProblems(ctx, lease, withdrawn, types); err != nil {
			return jobstore.Commit{}, err
		}
	}
	if err := w.Jobs.Stage(ctx, lease, units); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{
		Result: result,
		Next:   job.Request.Next(export.KindPlan, len(units) == 0),
		Plan:   &jobstore.Plan{Snapshot: snapshot, Cohort: cohort},
	}, nil
}

// allowed returns the job's types that its owner may still export: the grant may have become narrower since the
// kick-off, and it is the grant of now that holds.
func allowed(job export.Job, grant directory.Grant) []string {
	return slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool { return !grant.Types.Has(typ) })
}

func (w *Worker) storeCohort(
	ctx context.Context, lease export.Lease, job export.Job, grant directory.Grant,
) (cohort export.Cohort, err error) {
	ctx, span := telemetry.StartSpan(ctx, "cohort")
	defer func() {
		span.SetAttributes(attribute.Int64("sluice.patients", cohort.Patients))
		telemetry.EndSpan(span, err)
	}()
	prefix := export.CohortPrefix(job.ID, lease.Fence)
	members := spillset.NewBuilder(w.Objects, prefix)
	err = w.Groups.Members(ctx, job.Request.GroupID, func(patient string) error {
		if !fhir.IsID(patient) || !grant.Patients.Has(patient) {
			return nil
		}
		return members.Add(ctx, patient)
	})
	if err := complete(ctx, err); err != nil {
		return export.Cohort{}, fmt.Errorf("resolve the group: %w", err)
	}
	chunks, patients, err := spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error {
		return members.Each(ctx, yield)
	})
	if err != nil {
		return export.Cohort{}, fmt.Errorf("store the cohort: %w", err)
	}
	return export.Cohort{Prefix: prefix, Chunks: chunks, Patients: patients}, nil
}

// cut divides the cohort's data into units: a type's estimated bytes by what a unit of such a job should hold, but never
// finer than a chunk of the cohort. Types that the store does not hold have no unit.
func cut(types []string, sizes source.Sizes, cohort export.Cohort, cfg Config) []export.Unit {
	var wholes, units []export.Unit
	var total int64
	for _, typ := range types {
		size := sizes.Types[typ]
		if !fhir.InCompartment(typ) || size.Resources == 0 {
			continue
		}
		bytes := size.Bytes
		if sizes.Patients > cohort.Patients {
			bytes = int64(float64(size.Bytes) * float64(cohort.Patients) / float64(sizes.Patients))
		}
		wholes = append(wholes, export.Unit{
			ID: export.UnitID(typ), Kind: export.KindExport, Type: typ,
			Slice: export.Slice{From: 0, To: cohort.Chunks}, Bytes: bytes,
		})
		total += bytes
	}
	for _, whole := range wholes {
		units = append(units, divide(whole, cfg.unitBytes(total))...)
	}
	return units
}

// unitsWanted is into how many units a large job is cut: many enough that the last ones to end leave hundreds of workers
// idle for a moment only, and few enough to weigh nothing in Redis.
const unitsWanted = 1024

// unitBytes is how much a unit of a job of so many bytes should hold. The most is what a worker writes in one to three
// minutes, so that a lost worker costs no more; small jobs are cut finer, so that all workers have a part in them.
func (c Config) unitBytes(total int64) int64 {
	return max(min(total/unitsWanted, c.UnitMost), c.UnitBytes)
}

// divide cuts a unit into as many as its bytes need, numbered behind its id, but never finer than a chunk.
func divide(whole export.Unit, unitBytes int64) []export.Unit {
	chunks := whole.Slice.To - whole.Slice.From
	parts := int(min(max((whole.Bytes+unitBytes-1)/unitBytes, 1), int64(chunks)))
	units := make([]export.Unit, parts)
	for i := range units {
		units[i] = whole
		units[i].ID = export.UnitID(fmt.Sprintf("%s-%05d", whole.ID, i))
		units[i].Slice = export.Slice{
			From: whole.Slice.From + i*chunks/parts, To: whole.Slice.From + (i+1)*chunks/parts,
		}
		units[i].Bytes = whole.Bytes / int64(parts)
	}
	return units
}

// reportProblems writes an error file of the job: the types that were accepted and may no longer be exported, and
// what the source holds of the others and cannot serve. A malformed line is reported, and the rest is exported.
func (w *Worker) reportProblems(
	ctx context.Context, lease export.Lease, withdrawn, types []string,
) ([]export.File, error) {
	out := w.newFiles(ctx, lease, outcomeType, true)
	for _, typ := range withdrawn {
		if err := out.writeWithdrawn(typ); err != nil {
			return nil, errors.Join(err, out.abort())
		}
	}
	err := w.Source.Problems(ctx, types, func(p source.Problem) error {
		return out.writeOutcome(fhir.Outcome("error", "structure", fmt.Sprintf("%s: %s.", p.Place, p.What)))
	})
	if err := complete(ctx, err); err != nil {
		return nil, errors.Join(fmt.Errorf("list the source's problems: %w", err), out.abort())
	}
	return out.close()
}
