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

// byIDBatch is the number of ids of one query.
const byIDBatch = 512

// resolveReferences finds the resources that the exported lines reference, those that these and the Provenance about them
// reference, and so on, among the referenced types that the job exports (spec 10). It stores the result as a list of
// "Type/id" and cuts the units that export it.
func (w *Worker) resolveReferences(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	var frontier []string // runs of references not yet followed
	hadProvenance := false
	provenance := associated{kind: job.Request.Associated}
	err := w.Jobs.Results(ctx, job.ID, func(unit export.Unit, result export.Result) error {
		if !provenance.add(job.Request, unit, result) {
			frontier = append(frontier, result.References...)
		}
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
	types := allowed(job.Request.Types, grant)
	withdrawn := slices.DeleteFunc(slices.Clone(job.Request.Types), func(typ string) bool {
		// The plan reports the other types. If Provenance is withdrawn after the plan, the Provenance of referenced resources
		// is missing.
		here := fhir.IsReferenced(typ) && job.Request.AtLevel() != export.SystemLevel || typ == "Provenance" && hadProvenance
		return !here || slices.Contains(types, typ)
	})
	job.Request.Types, job.Request.Through = types, allowed(job.Request.Through, grant)

	if !slices.Contains(types, "Provenance") {
		provenance = associated{}
	}
	prefix := export.ReferencesPrefix(job.ID, lease.Unit.ID, lease.Fence)
	linked, err := w.joinAssociated(ctx, job, prefix+"associated/", &provenance)
	if err != nil {
		return jobstore.Commit{}, err
	}
	list, counts, cutOff, err := w.closeOver(ctx, job, prefix, append(frontier, linked...), &provenance)
	if err != nil {
		return jobstore.Commit{}, err
	}
	units, err := w.cutReferenced(ctx, job, list, counts)
	if err == nil {
		units, err = w.cutAssociated(ctx, prefix+"associated/", &provenance, units)
	}
	if err != nil {
		return jobstore.Commit{}, err
	}
	files, err := w.writeErrors(ctx, lease, withdrawn, func(*files) error { return nil })
	if err != nil {
		return jobstore.Commit{}, err
	}
	if err := w.stage(ctx, lease, units); err != nil {
		return jobstore.Commit{}, err
	}
	var left export.Tally
	if cutOff {
		left.AddAll([]export.LeftOut{{Reason: export.UnresolvedReference}})
	}
	return jobstore.Commit{
		Result: export.Result{Files: files, LeftOut: left.List()}, Next: job.Request.Next(lease.Unit.Kind, false),
	}, nil
}

// maxRounds bounds the length of a chain of references that is followed, such as of locations that are parts of locations.
const maxRounds = 100

// closeOver stores the transitive closure of the references in the runs as a list below prefix. It returns the list, the
// number of references of each type, and whether longer chains than maxRounds were cut off.
func (w *Worker) closeOver(
	ctx context.Context, job export.Job, prefix string, runs []string, provenance *associated,
) (list spillset.Stored, counts map[string]int64, cutOff bool, err error) {
	sources := spillset.Runs(runs)
	var frontier spillset.Stored // the references that are not yet followed
	for round := 0; ; round++ {
		below := fmt.Sprintf("%sround-%d/", prefix, round)
		counts = map[string]int64{}
		list, err = spillset.Write(ctx, w.Objects, below, func(yield func(string) error) error {
			return spillset.Merge(ctx, w.Objects, below, sources, func(ref string) error {
				typ, _, _ := strings.Cut(ref, "/")
				if !job.Request.Follows(typ) {
					return nil
				}
				counts[typ]++
				return yield(ref)
			})
		})
		if err != nil {
			return spillset.Stored{}, nil, false, fmt.Errorf("merge references: %w", err)
		}
		if list.Chunks == 0 || round == maxRounds {
			return list, counts, list.Chunks > 0, nil
		}
		if round == 0 {
			frontier = list
		}
		next := fmt.Sprintf("%snew-%d/", prefix, round)
		found, err := w.follow(ctx, job, list, frontier, next, provenance)
		if err != nil || found.Chunks == 0 {
			return list, counts, false, err
		}
		sources, frontier = []spillset.Run{list.Run(), found.Run()}, found
	}
}

// follow reads every resource of the list frontier, and the Provenance about it if the job exports that, and stores those
// of their references that the list all does not have as a list below next, which it returns. It skips resources that a
// guard refuses; the unit that exports them fails.
func (w *Worker) follow(
	ctx context.Context, job export.Job, all, frontier spillset.Stored, next string, provenance *associated,
) (spillset.Stored, error) {
	following, err := w.lists.Open(ctx, w.Objects, frontier.Prefix, frontier.Digest)
	if err != nil {
		return spillset.Stored{}, err
	}
	known, err := w.lists.Open(ctx, w.Objects, all.Prefix, all.Digest)
	if err != nil {
		return spillset.Stored{}, err
	}
	found := w.newRefCollector(job, next+"found/")
	mixed := spillset.NewBuilder(w.Objects, next+"mixed/") // Provenance that is also about patients
	g := listGuard{list: known}
	followed := requestOf(job, export.Unit{Kind: export.KindResolveReferences})
	selections := map[string]*chain{} // by type: references of a line that is not exported do not count
	selected := func(r source.Resource, err error) (bool, error) {
		if errors.As(err, new(export.PermanentError)) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		selection := selections[r.Type]
		if selection == nil {
			if selection, err = w.newSelection(followed, r.Type); err != nil {
				return false, err
			}
			selections[r.Type] = selection
		}
		line, err := selection.pass(r.Body)
		return line != nil, err
	}
	collect := func(r source.Resource) error { return found.collect(ctx, r) }
	for chunk := range following.Chunks() {
		refs, err := following.Chunk(ctx, chunk)
		if err != nil {
			return spillset.Stored{}, err
		}
		var exported []string // of refs
		err = w.byID(ctx, job, refs, func(r source.Resource) error {
			verdict, err := g.checkListed(ctx, r.Type, r)
			if verdict == withheld {
				return nil
			}
			if passes, err := selected(r, err); err != nil || !passes {
				return err
			}
			exported = append(exported, r.Type+"/"+r.ID)
			return collect(r)
		})
		if err != nil {
			return spillset.Stored{}, fmt.Errorf("follow references: %w", err)
		}
		if !job.Request.Follows("Provenance") {
			continue
		}
		about := func(refs []string, yield func(source.Resource) error) error {
			return w.about(ctx, job, refs, func(_ []string, r source.Resource) error {
				home, err := g.home(ctx, r)
				if home == "" && err == nil {
					return nil
				}
				if passes, err := selected(r, err); err != nil || !passes {
					return err
				}
				return yield(r)
			})
		}
		if provenance.kind == "" {
			err = about(refs, collect)
		} else {
			slices.Sort(exported)
			err = provenance.followProvenance(ctx, exported, about, collect, mixed)
		}
		if err != nil {
			return spillset.Stored{}, fmt.Errorf("follow references of Provenance: %w", err)
		}
	}
	err = w.followLinks(ctx, next+"links/", provenance, mixed, func(ref string) error { return found.builder.Add(ctx, ref) })
	if err != nil {
		return spillset.Stored{}, err
	}
	list, err := spillset.Write(ctx, w.Objects, next, func(yield func(string) error) error {
		return found.builder.Each(ctx, func(ref string) error {
			listed, err := known.Contains(ctx, ref)
			if err != nil || listed {
				return err
			}
			return yield(ref)
		})
	})
	if err != nil {
		return spillset.Stored{}, fmt.Errorf("store new references: %w", err)
	}
	return list, nil
}

// byID streams the resources of the sorted "Type/id" strings.
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
		if err := streamError(ctx, w.Source.ByID(ctx, query, yield)); err != nil {
			return err
		}
	}
	return nil
}

// cutReferenced cuts the units of each type in the list, and of the Provenance about it. counts holds the number of
// references of each type.
func (w *Worker) cutReferenced(
	ctx context.Context, job export.Job, stored spillset.Stored, counts map[string]int64,
) ([]export.Unit, error) {
	list, err := w.lists.Open(ctx, w.Objects, stored.Prefix, stored.Digest)
	if err != nil || list.Chunks() == 0 {
		return nil, err
	}
	sizes, err := w.Source.Sizes(ctx)
	if err != nil {
		return nil, fmt.Errorf("estimate sizes: %w", err)
	}
	var units []export.Unit
	for _, typ := range job.Request.Types {
		size, held := sizes.Types[typ]
		if !held {
			continue
		}
		whole := export.Unit{
			ID: export.UnitID(typ + "-referenced"), Kind: export.KindExportReferenced, Type: typ,
			Input: stored.Prefix, Digest: stored.Digest,
		}
		var count int64
		switch {
		case fhir.IsReferenced(typ) && counts[typ] > 0:
			// "Type0" sorts directly after every "Type/id".
			whole.Slice = export.Slice{From: max(list.Place(typ+"/"), 0), To: list.Place(typ+"0") + 1}
			count = counts[typ]
		case typ == "Provenance":
			whole.Slice = export.Slice{From: 0, To: list.Chunks()}
			for _, n := range counts { // estimate: one for each; most Provenance is about patients
				count += n
			}
		default:
			continue
		}
		whole.Bytes = int64(float64(size.Bytes) * min(float64(count)/float64(max(size.Resources, 1)), 1))
		units = append(units, divide(whole, w.cfg.UnitBytes)...)
	}
	return units, nil
}

// exportReferenced writes one of the referenced types, or the Provenance about them, from a slice of the list that the
// references unit has stored. It writes nothing that is not on the list.
func (w *Worker) exportReferenced(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	unit := lease.Unit
	list, err := w.lists.Open(ctx, w.Objects, unit.Input, unit.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	next, err := w.newChain(requestOf(job, unit), unit.Type)
	if err != nil {
		return jobstore.Commit{}, err
	}
	kept, err := w.openKept(ctx, job.Request, unit, nil)
	if err != nil {
		return jobstore.Commit{}, err
	}
	attached := w.newAttachments(lease, job, nil)
	defer attached.abort()
	g := listGuard{list: list}
	var result export.Result
	var left export.Tally
	withhold := func() {
		result.Found++
		left.Add(unit.Type, g.why, 1)
		w.metrics.withheld.WithLabelValues(string(g.why)).Inc()
	}
	result.Files, err = w.writeWithDeleted(ctx, lease, func(out *files, gone *deletions) error {
		write := func(r source.Resource) error {
			result.Found++
			line, err := next.pass(r.Body)
			if err != nil || line == nil {
				return err
			}
			if line, err = attached.serve(ctx, line); err != nil {
				return err
			}
			return out.write(line)
		}
		for chunk := unit.Slice.From; chunk < unit.Slice.To; chunk++ {
			refs, err := list.Chunk(ctx, chunk)
			if err != nil {
				return err
			}
			if unit.Type == "Provenance" {
				err = w.about(ctx, job, refs, func(batch []string, r source.Resource) error {
					home, err := g.home(ctx, r)
					if err != nil {
						return err
					}
					if home == "" { // each batch with a target of it counts it: its targets cannot be read
						withhold()
						return nil
					}
					// Another batch, here or in another unit, writes it.
					if home < batch[0] || home > batch[len(batch)-1] {
						return nil
					}
					if is, err := kept.has(ctx, r); err != nil || !is {
						result.Found++
						next.dropped++
						return err
					}
					return write(r)
				})
			} else {
				err = w.byID(ctx, job, ofType(refs, unit.Type), func(r source.Resource) error {
					verdict, err := g.checkListed(ctx, unit.Type, r)
					if verdict == withheld {
						withhold()
					}
					if verdict != admitted {
						return err
					}
					return write(r)
				})
			}
			if err != nil {
				return err
			}
		}
		return w.deletedReferenced(ctx, job, unit, list, gone)
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	result.LeftOut, result.Withheld, result.Filtered = left.List(), left.Total(), next.dropped
	if err := attached.addTo(&result); err != nil {
		return jobstore.Commit{}, err
	}
	if err := result.Check(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(unit.Kind, false)}, nil
}

// about streams the Provenance whose targets are only referenced resources and include any of the sorted "Type/id"
// strings. It queries one batch of them at a time and passes the batch to yield. A Provenance with targets in several
// batches is yielded once for each batch.
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
		if err := streamError(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// ofType returns the sorted "Type/id" strings of the type.
func ofType(refs []string, typ string) []string {
	from, _ := slices.BinarySearch(refs, typ+"/")
	to, _ := slices.BinarySearch(refs, typ+"0")
	return refs[from:to]
}
