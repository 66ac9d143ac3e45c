package pipeline

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// Output that is organized by patients (P-37) has blocks: the header, the Patient, what else is about the patient, and the
// referenced resources that these reference (companions). A unit writes all types of a slice of the cohort. It reads the
// types of a few patients into memory, one after the other, and then writes their blocks. If they need too much memory it
// reads fewer, and streams the block of a patient who alone needs too much.

// checkOrganized returns a permanent error for organized output that this version cannot write.
func checkOrganized(request export.Request) error {
	if request.OrganizedBy != "" && (request.OrganizedBy != "Patient" || request.Associated != "") {
		return export.Permanent("this version cannot organize the output of this request")
	}
	return nil
}

// exportOrganized writes the blocks of the patients in the unit's slice of the cohort.
func (w *Worker) exportOrganized(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix, job.Cohort.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	o, err := w.newOrganizer(ctx, lease, job, cohort)
	if err != nil {
		return jobstore.Commit{}, err
	}
	defer o.attached.abort()
	var result export.Result
	result.Files, err = w.writeWithDeleted(ctx, lease, func(out *files, gone *deletions) error {
		o.out, o.gone = blockWriter{out: out}, gone
		if err := o.export(ctx); err != nil {
			return err
		}
		return o.companions.deleted(ctx, o.unit, gone)
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	result.Headers = o.out.headers
	o.numbers.addTo(&result)
	if err := o.attached.addTo(&result); err != nil {
		return jobstore.Commit{}, err
	}
	if err := result.Check(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(lease.Unit.Kind, false)}, nil
}

// organizer runs an organized unit.
type organizer struct {
	*Worker

	job        export.Job
	unit       export.Unit
	cohort     *spillset.List
	sliced     *spillset.List
	joined     *spillset.List // those whose data units of their own export; nil: none
	passes     []*pass
	companions *companions
	attached   *attachedTypes
	numbers    numbers
	out        blockWriter
	gone       *deletions
}

// pass is one reading of a type. It has the guard, the window and the chain that a unit of the type would have.
type pass struct {
	unit  export.Unit // as if it were one of this type
	guard guard
	chain *chain
}

// writes reports whether the lines are written. Else only their references count.
func (p *pass) writes() bool { return p.unit.Scope != export.ScopeFollowed }

func (w *Worker) newOrganizer(
	ctx context.Context, lease export.Lease, job export.Job, cohort *spillset.List,
) (*organizer, error) {
	o := &organizer{Worker: w, job: job, unit: lease.Unit, cohort: cohort}
	types, err := o.granted(ctx)
	if err != nil {
		return nil, err
	}
	o.attached = &attachedTypes{worker: w, lease: lease, job: job, cohort: cohort, types: map[string]*attachments{}}
	o.companions = w.newCompanions(lease, job, types, o.attached)
	own, followed := o.unit.Scope, o.unit.Scope == export.ScopeFollowed
	if followed {
		own = export.ScopeCohort
	}
	for _, typ := range types {
		if !fhir.InCompartment(typ) {
			continue
		}
		if slices.Contains(job.Request.Types, typ) {
			if err := o.addPass(ctx, typ, own); err != nil {
				return nil, err
			}
			o.numbers.of(typ)
		}
		if followed {
			if err := o.addPass(ctx, typ, export.ScopeFollowed); err != nil {
				return nil, err
			}
		}
	}
	if first := o.passes[0]; first.unit.Scope == export.ScopeCohort {
		o.joined = first.guard.joined
	}
	return o, nil
}

// granted returns the types of the unit that the owner may still export, Patient first, as in a block. It notes the others.
func (o *organizer) granted(ctx context.Context) ([]string, error) {
	grant, err := o.Access.Grant(ctx, o.job.Owner)
	if err != nil {
		return nil, err
	}
	planned := strings.Split(o.unit.Types, ",")
	types := allowed(planned, grant)
	for _, typ := range planned {
		if !slices.Contains(types, typ) {
			o.numbers.left.AddAll([]export.LeftOut{{Type: typ, Reason: export.NotGranted}})
		}
	}
	if !slices.ContainsFunc(types, fhir.InCompartment) {
		return nil, export.Permanent("the permission was withdrawn")
	}
	if at := slices.Index(types, "Patient"); at > 0 {
		types = slices.Insert(slices.Delete(types, at, at+1), 0, "Patient")
	}
	return types, nil
}

func (o *organizer) addPass(ctx context.Context, typ string, scope export.Scope) (err error) {
	p := &pass{unit: o.unit}
	p.unit.Type, p.unit.Scope = typ, scope
	if p.guard, o.sliced, err = o.newGuard(ctx, o.job, p.unit, o.cohort); err != nil {
		return err
	}
	p.guard.blocks = true
	newChain := o.newChain
	if !p.writes() {
		newChain = o.newSelection
	}
	p.chain, err = newChain(requestOf(o.job, p.unit), typ)
	o.passes = append(o.passes, p)
	return err
}

// export reads and writes batches of patients.
func (o *organizer) export(ctx context.Context) error {
	slice := o.unit.Slice
	// Estimates: a batch that is too large is halved.
	inChunk := max(o.job.Cohort.Patients/int64(max(o.job.Cohort.Chunks, 1)), 1)
	batch := o.blockMemory / 2 * int64(slice.To-slice.From) * inChunk / max(o.unit.Bytes, 1)
	batch = min(max(batch, 1), queryChunks*spillset.ChunkSize)
	step := int(max(batch/spillset.ChunkSize, 1))
	for from := slice.From; from < slice.To; from += step {
		patients, err := o.sliced.IDs(ctx, from, min(from+step, slice.To))
		if err != nil {
			return err
		}
		if o.joined != nil {
			if patients, err = without(ctx, patients, o.joined); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(patients, int(batch)) {
			if err := o.exportBlocks(ctx, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// exportBlocks exports the blocks of the patients, ascending, and what was deleted of them.
func (o *organizer) exportBlocks(ctx context.Context, patients []string) error {
	if o.unit.Scope != export.ScopeGone {
		blocks, err := o.gather(ctx, patients)
		switch {
		case err == nil:
			err = o.write(patients, blocks)
		case !errors.Is(err, errTooLarge):
		case len(patients) > 1:
			half := len(patients) / 2
			if err := o.exportBlocks(ctx, patients[:half]); err != nil {
				return err
			}
			return o.exportBlocks(ctx, patients[half:])
		default:
			err = o.stream(ctx, patients[0])
		}
		if err != nil {
			return err
		}
	}
	for _, p := range o.passes {
		if !p.writes() {
			continue
		}
		p.guard.request(patients)
		if err := o.exportDeleted(ctx, o.job, p.unit, &p.guard, &sink{gone: o.gone}); err != nil {
			return err
		}
	}
	return nil
}
