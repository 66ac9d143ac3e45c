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

// plan freezes the snapshot, resolves the cohort (the group's members that the owner may see), and cuts one or more units
// for each type (spec 8). An empty cohort has no units: it never means all patients.
func (w *Worker) plan(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	// Whole seconds, as in the transactionTime of IG clients: nothing newer than that is exported (M-01).
	snapshot, err := w.Source.Snapshot(ctx, w.Now())
	if err != nil {
		return jobstore.Commit{}, fmt.Errorf("freeze the snapshot: %w", err)
	}

	grant, err := w.Access.Grant(ctx, job.Owner)
	if err != nil {
		return jobstore.Commit{}, err
	}
	if err := checkGrant(job, grant); err != nil {
		return jobstore.Commit{}, err
	}
	chosen, err := w.storeCohort(ctx, lease, job, grant.Few)
	if errors.Is(err, directory.ErrNoGroup) {
		return jobstore.Commit{}, export.Permanent("the group can no longer be exported")
	}
	if err != nil {
		return jobstore.Commit{}, err
	}
	types, cohort := allowed(job, chosen.grant), chosen.cohort

	var units []export.Unit
	data := ""
	result := export.Result{LeftOut: chosen.leftOut}
	if cohort.Patients > 0 {
		sizes, err := w.Source.Sizes(ctx)
		if err != nil {
			return jobstore.Commit{}, fmt.Errorf("estimate sizes: %w", err)
		}
		data = sizes.Identity
		units = cut(types, sizes, cohort, w.cfg)
		if _, held := sizes.Types["Patient"]; !held && slices.Contains(types, "Patient") {
			// Otherwise the seal compares the members with the patients that the units of Patient found.
			missing := export.LeftOut{Reason: export.MemberMissing, Count: cohort.Patients}
			result.LeftOut = append(result.LeftOut, missing)
		}
		withdrawn := slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool {
			// If there are units, the references unit checks the grant again and reports the referenced types.
			return slices.Contains(types, typ) || fhir.IsReferenced(typ) && len(units) > 0
		})
		result.Files, err = w.writeErrors(ctx, lease, withdrawn, func(*files) error { return nil })
		if err != nil {
			return jobstore.Commit{}, err
		}
		left, err := w.leftOut(ctx, types, chosen.everybody)
		if err != nil {
			return jobstore.Commit{}, err
		}
		result.LeftOut = append(result.LeftOut, left...)
	}
	if err := w.stage(ctx, lease, units); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{
		Result: result,
		Next:   job.Request.Next(export.KindPlan, len(units) == 0),
		Plan:   &jobstore.Plan{Snapshot: snapshot, Cohort: cohort, Data: data},
	}, nil
}

// allowed returns the job's types that the current grant allows. It may be narrower than at the kick-off.
func allowed(job export.Job, grant directory.Grant) []string {
	return slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool { return !grant.Types.Has(typ) })
}

// checkGrant returns an error unless the grant still allows a part of the job.
func checkGrant(job export.Job, grant directory.Grant) error {
	if !grant.Groups.Has(job.Request.GroupID) || len(allowed(job, grant)) == 0 {
		return export.Permanent("the permission was withdrawn")
	}
	return nil
}

// selection is what storeCohort has selected.
type selection struct {
	// grant is the one that the members were selected by. Its types count as well, not those of an earlier read, because a
	// mix of two versions of a grant may allow more than either.
	grant     directory.Grant
	everybody bool // the grant includes every patient
	cohort    export.Cohort
	leftOut   []export.LeftOut // members that the directory left out
}

// storeCohort stores the group's members that the owner may see.
func (w *Worker) storeCohort(
	ctx context.Context, lease export.Lease, job export.Job, few *directory.Selection,
) (chosen selection, err error) {
	ctx, span := telemetry.StartSpan(ctx, "cohort")
	defer func() {
		span.SetAttributes(attribute.Int64("sluice.patients", chosen.cohort.Patients))
		telemetry.EndSpan(span, err)
	}()
	prefix := export.CohortPrefix(job.ID, lease.Fence)
	members := spillset.NewBuilder(w.Objects, prefix)
	chosen.leftOut, err = w.Groups.Members(ctx, job.Request.GroupID, func(patient string) error {
		if !fhir.IsID(patient) || few != nil && !few.Has(patient) { // few keeps a large group out of the sort
			return nil
		}
		return members.Add(ctx, patient)
	})
	if err := streamError(ctx, err); err != nil {
		return selection{}, fmt.Errorf("resolve the group: %w", err)
	}
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
		list, err := spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error {
			return members.Each(ctx, func(patient string) error {
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

// cut divides each type into units of about cfg.unitBytes, never finer than a chunk of the cohort. A type that the source
// has never held has no unit.
func cut(types []string, sizes source.Sizes, cohort export.Cohort, cfg Config) []export.Unit {
	var wholes, units []export.Unit
	var total int64
	for _, typ := range types {
		size, held := sizes.Types[typ]
		if !fhir.InCompartment(typ) || !held {
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

// unitsWanted is the number of units of a large job: enough for hundreds of workers to finish at about the same time, and
// few enough for Redis.
const unitsWanted = 1024

// unitBytes is the target size of the units of a job. UnitMost is the output of one to three minutes, which bounds
// the loss of a worker. A small job has smaller units, so that all workers share it.
func (c Config) unitBytes(total int64) int64 {
	return max(min(total/unitsWanted, c.UnitMost), c.UnitBytes)
}

// divide cuts a unit into units of about unitBytes, never finer than a chunk, and appends a number to their ids.
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

// leftOut returns what no export contains and concerns one of the types or is of no known type. The numbers are those of
// the whole source, so only owners who may see every patient get them (spec 11).
func (w *Worker) leftOut(ctx context.Context, types []string, counted bool) ([]export.LeftOut, error) {
	all, err := w.ObserveLeftOut(ctx)
	if err != nil {
		return nil, err
	}
	var list []export.LeftOut
	for _, l := range all {
		// Data of other servers is in no export.
		if l.Type != "" && !slices.Contains(types, l.Type) || l.Reason == export.ForeignReference {
			continue
		}
		if !counted {
			l.Count = 0
		}
		list = append(list, l)
	}
	return list, nil
}

// ObserveLeftOut returns what the source leaves out of every export, and sets the metric of it and of the groups that
// cannot be read.
func (w *Worker) ObserveLeftOut(ctx context.Context) ([]export.LeftOut, error) {
	all, err := w.Source.LeftOut(ctx)
	if err != nil {
		return nil, fmt.Errorf("count what the source leaves out: %w", err)
	}
	tally := export.Tally{}
	tally.AddAll(all)
	if folder, ok := w.Groups.(interface{ LeftOut() []export.LeftOut }); ok {
		tally.AddAll(folder.LeftOut())
	}
	w.metrics.leftOut.Reset()
	for _, l := range tally.List() {
		w.metrics.leftOut.WithLabelValues(l.Type, string(l.Reason)).Set(float64(l.Count))
	}
	return all, nil
}
