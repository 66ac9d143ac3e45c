package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// byIDBatch is how many resources are asked for at once by id.
const byIDBatch = 512

// references closes the set of referenced resources: what the exported lines reference, what those and the Provenance
// about them reference, and so on among the referenced types that the job exports (spec 10). It stores the set as a
// list of "Type/id" and cuts units for each type in it.
func (w *Worker) references(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	var frontier []string // runs of references not yet followed
	hadProvenance := false
	err := w.Jobs.Results(ctx, job.ID, func(unit export.Unit, result export.Result) error {
		frontier = append(frontier, result.References...)
		hadProvenance = hadProvenance || unit.Type == "Provenance"
		return nil
	})
	if err != nil {
		return jobstore.Commit{}, err
	}

	grant, err := w.Access.Grant(ctx, job.Owner)
	if err != nil {
		return jobstore.Commit{}, err
	}
	asked := job.Request.Types
	job.Request.Types = allowed(job, grant)
	prefix := export.ReferencesPrefix(job.ID, lease.Unit.ID, lease.Fence)
	list := prefix
	var counts map[string]int64 // references in the list, by type
	for round := 0; ; round++ {
		list = fmt.Sprintf("%sround-%d/", prefix, round)
		counts = map[string]int64{}
		chunks, _, err := spillset.Write(ctx, w.Objects, list, func(yield func(string) error) error {
			return spillset.Merge(ctx, w.Objects, list, frontier, func(ref string) error {
				typ, _, _ := strings.Cut(ref, "/")
				if !slices.Contains(job.Request.Types, typ) {
					return nil
				}
				counts[typ]++
				return yield(ref)
			})
		})
		if err != nil {
			return jobstore.Commit{}, fmt.Errorf("merge references: %w", err)
		}
		if chunks == 0 {
			break
		}
		grown, runs, err := w.follow(ctx, lease, job, list)
		if err != nil {
			return jobstore.Commit{}, err
		}
		if !grown {
			break
		}
		// The next round starts from all that is known: following a resource again is cheap, and rounds are few.
		frontier = append(spillset.Runs(list, chunks), runs...)
	}

	units, err := w.cutReferenced(ctx, job, list, counts)
	if err != nil {
		return jobstore.Commit{}, err
	}
	files, err := w.reportWithdrawn(ctx, lease, asked, job.Request.Types, hadProvenance)
	if err != nil {
		return jobstore.Commit{}, err
	}
	if err := w.Jobs.Stage(ctx, lease, units); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{
		Result: export.Result{Files: files}, Next: job.Request.Next(lease.Unit.Kind, false),
	}, nil
}

// reportWithdrawn writes an error file of the referenced types that were asked for and may no longer be exported. Of
// Provenance it says so when the plan still had it exported: what is missing is the part about referenced resources.
func (w *Worker) reportWithdrawn(
	ctx context.Context, lease export.Lease, asked, types []string, hadProvenance bool,
) ([]export.File, error) {
	out := w.newFiles(ctx, lease, outcomeType, true)
	for _, typ := range asked {
		here := fhir.IsReferenced(typ) || typ == "Provenance" && hadProvenance
		if !here || slices.Contains(types, typ) {
			continue
		}
		if err := out.writeWithdrawn(typ); err != nil {
			return nil, errors.Join(err, out.abort())
		}
	}
	return out.close()
}

// follow reads every resource of the list, and the Provenance about it when the job exports that, and collects what
// they reference. It reports whether that adds to the list. What the source gives unasked is not followed; the unit
// that is to write it will refuse it.
func (w *Worker) follow(
	ctx context.Context, lease export.Lease, job export.Job, prefix string,
) (grown bool, runs []string, err error) {
	known, err := w.lists.Open(ctx, w.Objects, prefix)
	if err != nil {
		return false, nil, err
	}
	found := w.newRefCollector(lease, job)
	found.builder = spillset.NewBuilder(w.Objects, prefix+"found/")
	g := listGuard{list: known}
	follow := func(check func(source.Resource) error) func(source.Resource) error {
		return func(r source.Resource) error {
			var refused export.PermanentError
			switch err := check(r); {
			case errors.As(err, &refused):
				return nil
			case err != nil:
				return err
			}
			return found.collect(ctx, r)
		}
	}
	resource := follow(func(r source.Resource) error {
		g.typ = r.Type
		return g.checkListed(ctx, r)
	})
	provenance := follow(func(r source.Resource) error {
		g.typ = "Provenance"
		_, err := g.home(ctx, r)
		return err
	})
	for chunk := range known.Chunks() {
		refs, err := known.Chunk(ctx, chunk)
		if err != nil {
			return false, nil, err
		}
		if err := w.byID(ctx, job, refs, resource); err != nil {
			return false, nil, fmt.Errorf("follow references: %w", err)
		}
		if !slices.Contains(job.Request.Types, "Provenance") {
			continue
		}
		if err := w.about(ctx, job, refs, func(_ []string, r source.Resource) error { return provenance(r) }); err != nil {
			return false, nil, fmt.Errorf("follow references of Provenance: %w", err)
		}
	}
	errGrown := errors.New("grown")
	err = found.builder.Each(ctx, func(ref string) error {
		there, err := known.Contains(ctx, ref)
		if err == nil && !there {
			err = errGrown
		}
		return err
	})
	if err != nil && !errors.Is(err, errGrown) {
		return false, nil, err
	}
	if grown = err != nil; !grown {
		return false, nil, nil
	}
	runs, err = found.runs(ctx)
	return true, runs, err
}

// byID streams the resources that the sorted "Type/id" strings name.
func (w *Worker) byID(
	ctx context.Context, job export.Job, refs []string, yield func(source.Resource) error,
) error {
	for len(refs) > 0 {
		typ, _, _ := strings.Cut(refs[0], "/")
		var ids []string
		for len(refs) > 0 && len(ids) < byIDBatch {
			id, same := strings.CutPrefix(refs[0], typ+"/")
			if !same {
				break
			}
			ids = append(ids, id)
			refs = refs[1:]
		}
		query := source.ByIDQuery{Type: typ, IDs: ids, AsOf: job.Snapshot}
		if err := complete(ctx, w.Source.ByID(ctx, query, yield)); err != nil {
			return err
		}
	}
	return nil
}

// cutReferenced cuts units for each type in the list, and for the Provenance about it. counts says how many
// references of each type the list holds.
func (w *Worker) cutReferenced(
	ctx context.Context, job export.Job, prefix string, counts map[string]int64,
) ([]export.Unit, error) {
	list, err := w.lists.Open(ctx, w.Objects, prefix)
	if err != nil || list.Chunks() == 0 {
		return nil, err
	}
	sizes, err := w.Source.Sizes(ctx)
	if err != nil {
		return nil, fmt.Errorf("size up the source: %w", err)
	}
	var units []export.Unit
	for _, typ := range job.Request.Types {
		size := sizes.Types[typ]
		if size.Resources == 0 {
			continue
		}
		whole := export.Unit{ID: export.UnitID(typ + "-referenced"), Kind: export.KindExportReferenced, Type: typ, Input: prefix}
		var count int64
		switch {
		case fhir.IsReferenced(typ) && counts[typ] > 0:
			// "Type0" sorts right behind every "Type/id".
			whole.Slice = export.Slice{From: max(list.Place(typ+"/"), 0), To: list.Place(typ+"0") + 1}
			count = counts[typ]
		case typ == "Provenance":
			whole.Slice = export.Slice{From: 0, To: list.Chunks()}
			for _, of := range counts { // taken for one about each; most Provenance is about patients
				count += of
			}
		default:
			continue
		}
		whole.Bytes = int64(float64(size.Bytes) * min(float64(count)/float64(size.Resources), 1))
		units = append(units, divide(whole, w.cfg.UnitBytes)...)
	}
	return units, nil
}

// referenced writes one of the referenced types, or the Provenance about them, from a slice of the list that the
// references unit has stored. The guard here is the list: nothing is written that is not on it.
func (w *Worker) referenced(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	list, err := w.lists.Open(ctx, w.Objects, lease.Unit.Input)
	if err != nil {
		return jobstore.Commit{}, err
	}
	out := w.newFiles(ctx, lease, lease.Unit.Type, false)
	g := listGuard{typ: lease.Unit.Type, list: list}
	err = func() error {
		for chunk := lease.Unit.Slice.From; chunk < lease.Unit.Slice.To; chunk++ {
			refs, err := list.Chunk(ctx, chunk)
			if err != nil {
				return err
			}
			if lease.Unit.Type == "Provenance" {
				err = w.about(ctx, job, refs, func(batch []string, r source.Resource) error {
					home, err := g.home(ctx, r)
					if err != nil {
						return err
					}
					// At home in another batch means that the call for that one writes it, here or in another unit.
					if home < batch[0] || home > batch[len(batch)-1] {
						return nil
					}
					return out.write(r.Body)
				})
			} else {
				err = w.byID(ctx, job, ofType(refs, lease.Unit.Type), func(r source.Resource) error {
					if err := g.checkListed(ctx, r); err != nil {
						return err
					}
					return out.write(r.Body)
				})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		return jobstore.Commit{}, w.abandon(out, fmt.Errorf("export %s: %w", lease.Unit.Type, err))
	}
	var result export.Result
	if result.Files, err = out.close(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(lease.Unit.Kind, false)}, nil
}

// about streams the Provenance whose targets are only referenced resources and that target any of the sorted
// "Type/id" strings. It asks for a batch of them at a time and yields that batch along; what targets several batches
// comes several times.
func (w *Worker) about(
	ctx context.Context, job export.Job, refs []string, yield func(batch []string, r source.Resource) error,
) error {
	for batch := range slices.Chunk(refs, byIDBatch) {
		query := source.AboutQuery{Refs: make([]source.Ref, len(batch)), AsOf: job.Snapshot}
		for i, ref := range batch {
			typ, id, _ := strings.Cut(ref, "/")
			query.Refs[i] = source.Ref{Type: typ, ID: id}
		}
		err := w.Source.About(ctx, query, func(r source.Resource) error { return yield(batch, r) })
		if err := complete(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// listGuard checks resources without a patient against the list of what was referenced.
type listGuard struct {
	typ     string
	list    *spillset.List
	scanner fhir.Scanner
}

func (g *listGuard) scan(r source.Resource) (fhir.Facts, error) {
	facts, err := g.scanner.Scan(r.Body)
	if err != nil {
		return fhir.Facts{}, refuse("a line that cannot be read")
	}
	if facts.Type != g.typ || r.Type != g.typ || facts.ID != r.ID {
		return fhir.Facts{}, refuse("a resource of another type or id than asked for")
	}
	if r.Attested() && r.Attest() != r.Attestation {
		return fhir.Facts{}, refuse("a resource that is not what was loaded")
	}
	return facts, nil
}

// checkListed refuses a resource that is not on the list.
func (g *listGuard) checkListed(ctx context.Context, r source.Resource) error {
	facts, err := g.scan(r)
	if err != nil {
		return err
	}
	listed, err := g.list.Contains(ctx, facts.Type+"/"+facts.ID)
	if err == nil && !listed {
		err = refuse("a resource that nothing exported references")
	}
	return err
}

// home returns the smallest listed target of a Provenance. It refuses one that has anything about a patient among its
// targets, and one that has no listed target.
func (g *listGuard) home(ctx context.Context, r source.Resource) (string, error) {
	facts, err := g.scan(r)
	if err != nil {
		return "", err
	}
	home := ""
	for _, target := range facts.Subjects {
		if fhir.InCompartment(target.Type) {
			return "", refuse("a Provenance about a patient where none was asked for")
		}
		ref := target.Type + "/" + target.ID
		listed, err := g.list.Contains(ctx, ref)
		if err != nil {
			return "", err
		}
		if listed && (home == "" || ref < home) {
			home = ref
		}
	}
	if home == "" {
		return "", refuse("a Provenance about nothing exported")
	}
	return home, nil
}

// ofType returns the part of the sorted "Type/id" strings that are of the type.
func ofType(refs []string, typ string) []string {
	from, _ := slices.BinarySearch(refs, typ+"/")
	to, _ := slices.BinarySearch(refs, typ+"0")
	return refs[from:to]
}
