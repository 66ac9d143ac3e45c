package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// plan freezes the snapshot, resolves the cohort (the patients of the job's level that the owner may see), and cuts one or
// more units for each type (spec 8). An empty cohort has no units below the system level: it never means all patients.
func (w *Worker) plan(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	if err := checkOrganized(job.Request); err != nil {
		return jobstore.Commit{}, err
	}
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
	chosen, err := w.storeCohort(ctx, lease, job, snapshot, grant.Few)
	if errors.Is(err, directory.ErrNoGroup) {
		return jobstore.Commit{}, export.Permanent("the group can no longer be exported")
	}
	if err != nil {
		return jobstore.Commit{}, err
	}

	var units []export.Unit
	data := ""
	result := export.Result{LeftOut: chosen.leftOut}
	// Deletions are told to a cohort that has become empty, too.
	level := job.Request.AtLevel()
	if chosen.cohort.Patients > 0 || level == export.SystemLevel || level == export.PatientLevel && job.Request.Incremental() {
		sizes, err := w.Source.Sizes(ctx)
		if err != nil {
			return jobstore.Commit{}, fmt.Errorf("estimate sizes: %w", err)
		}
		data = sizes.Identity
		if err := w.chooseIncrement(ctx, job, snapshot, &chosen); err != nil {
			return jobstore.Commit{}, err
		}
		units = cut(job.Request, chosen, sizes, w.cfg)
		if result, err = w.planShortfall(ctx, lease, job, chosen, sizes, len(units) > 0); err != nil {
			return jobstore.Commit{}, err
		}
	}
	if err := w.stage(ctx, lease, units); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{
		Result: result,
		Next:   job.Request.Next(export.KindPlan, len(units) == 0),
		Plan:   &jobstore.Plan{Snapshot: snapshot, Cohort: chosen.cohort, Data: data},
	}, nil
}

// planShortfall returns the result of a plan: what the plan already knows to be missing.
func (w *Worker) planShortfall(
	ctx context.Context, lease export.Lease, job export.Job, chosen selection, sizes source.Sizes, anyUnits bool,
) (result export.Result, err error) {
	result.LeftOut = chosen.leftOut
	types := allowed(job.Request.Types, chosen.grant)
	if _, held := sizes.Types["Patient"]; !held && slices.Contains(types, "Patient") {
		// Otherwise the seal compares the members with the patients that the units of Patient found.
		missing := export.LeftOut{Reason: export.MemberMissing, Count: chosen.cohort.Patients}
		result.LeftOut = append(result.LeftOut, missing)
	}
	if job.Request.Incremental() && sinceOf(job.Request).Before(sizes.DeletionsSince) {
		result.LeftOut = append(result.LeftOut, export.LeftOut{Reason: export.DeletionsUnknown})
	}
	if job.Request.AtLevel() == export.SystemLevel && !chosen.everybody {
		for _, typ := range types {
			if _, held := sizes.Types[typ]; held && fhir.MayNamePatients(typ) {
				result.LeftOut = append(result.LeftOut, export.LeftOut{Type: typ, Reason: export.NotGranted})
			}
		}
	}
	if job.Request.OrganizedBy != "" {
		result.LeftOut = append(result.LeftOut, inNoBlock(job.Request, types)...)
	}
	withdrawn := slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool {
		// If there are units, the references unit checks the grant again and reports the referenced types.
		follows := job.Request.Next(export.KindExport, false).ID == export.ReferencesUnit
		reportedLater := fhir.IsReferenced(typ) && anyUnits && follows
		return slices.Contains(types, typ) || reportedLater
	})
	result.Files, err = w.writeErrors(ctx, lease, withdrawn, func(*files) error { return nil })
	if err != nil {
		return export.Result{}, err
	}
	left, err := w.leftOut(ctx, job, types, chosen.everybody)
	if err != nil {
		return export.Result{}, err
	}
	result.LeftOut = append(result.LeftOut, left...)
	return result, nil
}

// allowed returns those of the types that the current grant allows. It may be narrower than at the kick-off.
func allowed(types []string, grant directory.Grant) []string {
	return slices.DeleteFunc(slices.Clone(types), func(typ string) bool { return !grant.Types.Has(typ) })
}

// checkGrant returns an error unless the grant still allows a part of the job.
func checkGrant(job export.Job, grant directory.Grant) error {
	level := job.Request.AtLevel()
	if !grant.Levels.Has(level) || level == export.GroupLevel && !grant.Groups.Has(job.Request.GroupID) ||
		len(allowed(job.Request.Types, grant)) == 0 {
		return export.Permanent("the permission was withdrawn")
	}
	return nil
}

// leftOut returns what the source leaves out of the job and concerns one of the types or is of no known type. The numbers
// are those of the whole source, so only owners who may see every patient get them (spec 11).
func (w *Worker) leftOut(ctx context.Context, job export.Job, types []string, counted bool) ([]export.LeftOut, error) {
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
		// The system level exports what is about no patient, and to those who may see every patient all that is held.
		everything := job.Request.AtLevel() == export.SystemLevel && job.Request.OrganizedBy == ""
		if everything && (l.Reason == export.NoPatient || counted && l.Reason.Homeless()) {
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
