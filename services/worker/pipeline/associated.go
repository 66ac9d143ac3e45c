package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// With `includeAssociatedData` a Provenance is exported because of its targets (P-26, P-27). Nobody knows them before the
// other types are written, so Provenance is read twice:
//
//  1. The export units of Provenance write nothing. They are candidates: of each line that the guard admits they store its
//     targets and its references. The export units of the other types store what they write.
//  2. The references unit joins both, stores the list of the Provenance that is kept, and follows its references. Units of
//     KindExportAssociated read Provenance again, under the same guard, and write what is on the list.
//
// What has referenced resources as targets is decided where references are followed (followProvenance).
//
// Strings that are stored and merged. A comma sorts before all characters of ids:
//
//	Type/id                            a resource that was written
//	Type/id,recorded,updated,id,place  a candidate for this target; the last of a target is its newest
//	place/id                           a Provenance that is kept
//	place/id,Type/id                   a reference of a candidate

// isCandidate reports whether the unit only collects Provenance that may be associated.
func isCandidate(request export.Request, unit export.Unit) bool {
	return request.Associated != "" && unit.Kind == export.KindExport && unit.Type == "Provenance" &&
		unit.Scope != export.ScopeFollowed && unit.Scope != export.ScopeGone
}

// ofPatients reports whether the request asks for the type because it is about patients. Provenance that is only associated
// with referenced types is not.
func ofPatients(request export.Request, typ string) bool {
	return fhir.InCompartment(typ) && (typ != "Provenance" || request.Associated == "" || len(request.Through) == 0)
}

// associate prepares the sink for the unit's part in associated data, if the request asks for it.
func (w *Worker) associate(
	ctx context.Context, lease export.Lease, job export.Job, cohort *spillset.List, sink *sink,
) (err error) {
	unit := lease.Unit
	switch {
	case unit.Kind == export.KindExportAssociated:
		sink.refs.types = nil // the references unit has followed them
		sink.kept, err = w.openKept(ctx, job.Request, unit, cohort)
		return err
	case job.Request.Associated == "" || unit.Scope == export.ScopeFollowed:
		return nil
	}
	prefix := export.ReferencesPrefix(lease.Job, unit.ID, lease.Fence)
	sink.targets = &targetCollector{
		types: sink.refs.types, cohort: cohort, targets: spillset.NewBuilder(w.Objects, prefix+"targets/"),
	}
	if isCandidate(job.Request, unit) {
		sink.targets.links = spillset.NewBuilder(w.Objects, prefix+"links/")
	}
	return nil
}

// targetCollector collects what was written, or what may be associated with it.
type targetCollector struct {
	types   map[string]bool // the referenced types whose references count
	cohort  *spillset.List
	targets *spillset.Builder
	links   *spillset.Builder // of candidates, else nil
}

// areCandidates reports whether the unit reads candidates.
func (c *targetCollector) areCandidates() bool { return c != nil && c.links != nil }

// written adds a resource that was written.
func (c *targetCollector) written(ctx context.Context, r source.Resource) error {
	if c == nil {
		return nil
	}
	return c.targets.Add(ctx, r.Type+"/"+r.ID)
}

// candidate adds a Provenance with its targets and references.
func (c *targetCollector) candidate(ctx context.Context, r source.Resource) error {
	p, err := readProvenance(r)
	if err != nil {
		return err
	}
	place := placeOf(c.cohort, r)
	for _, target := range p.targets {
		if err := c.targets.Add(ctx, fmt.Sprintf("%s,%s,%08d", target, p.rank, place)); err != nil {
			return err
		}
	}
	fhir.References(r.Body, func(ref fhir.Ref) bool {
		if c.types[ref.Type] {
			err = c.links.Add(ctx, fmt.Sprintf("%s,%s/%s", keptKey(place, r.ID), ref.Type, ref.ID))
		}
		return err == nil
	})
	return err
}

// store sets the runs of the unit's result.
func (c *targetCollector) store(ctx context.Context, result *export.Result) (err error) {
	if c == nil {
		return nil
	}
	if result.Targets, err = c.targets.Spill(ctx); err == nil && c.links != nil {
		result.Found, result.Filtered = result.Withheld, 0 // the second reading counts the others
		result.References, err = c.links.Spill(ctx)
	}
	if err != nil {
		return fmt.Errorf("store targets: %w", err)
	}
	return nil
}

// provenance is what decides whether a Provenance is associated.
type provenance struct {
	targets []string // "Type/id"
	rank    string   // "recorded,updated,id"; the newer of two sorts later
}

func readProvenance(r source.Resource) (p provenance, err error) {
	var fields struct {
		Recorded string
		Meta     struct{ LastUpdated string }
		Target   []struct{ Reference string }
	}
	// A field of another JSON type counts as absent.
	if err := json.Unmarshal(r.Body, &fields); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return p, fmt.Errorf("read Provenance: %w", err)
	}
	for _, target := range fields.Target {
		if ref, local := fhir.ParseReference(target.Reference); local {
			p.targets = append(p.targets, ref.Type+"/"+ref.ID)
		}
	}
	p.rank = sortable(fields.Recorded) + "," + sortable(fields.Meta.LastUpdated) + "," + r.ID
	return p, nil
}

// sortable returns an instant in a form whose byte order is that of time. What is no instant sorts before all.
func sortable(instant string) string {
	at, err := time.Parse(time.RFC3339Nano, instant)
	if err != nil {
		return "-"
	}
	return at.UTC().Format("2006-01-02T15:04:05.000000000")
}

// keptKey returns the name of a Provenance in the list of those that are kept. The place keeps those of neighbouring
// patients together.
func keptKey(place int, id string) string { return fmt.Sprintf("%08d/%s", place, id) }

// placeOf returns the number of the cohort's chunk that the resource is near, from 1, or 0 for one about no patient.
func placeOf(cohort *spillset.List, r source.Resource) int {
	if cohort == nil || len(r.Subjects) == 0 { // a unit without a cohort reads nothing about patients
		return 0
	}
	return cohort.Place(r.Subjects[0]) + 1
}

// associated is the Provenance of a job, as its references unit learns about it.
type associated struct {
	kind    export.Associated
	targets []string      // runs of what was written and of candidates
	links   []string      // runs of the references of candidates
	units   []export.Unit // that read the candidates
	kept    *spillset.Builder
	open    *spillset.List // candidates for targets of referenced types, which are not exported yet; nil: none
}

// add adds the result of a unit. It reports whether the unit collected candidates.
func (a *associated) add(request export.Request, unit export.Unit, result export.Result) bool {
	a.targets = append(a.targets, result.Targets...)
	if !isCandidate(request, unit) {
		return false
	}
	if result.Failure == "" {
		a.units = append(a.units, unit)
		a.links = append(a.links, result.References...)
	}
	return true
}

// candidate is one for one target.
type candidate struct {
	rank string
	key  string // in the list of those that are kept
}

func parseCandidate(text string) (candidate, error) {
	fields := strings.Split(text, ",")
	if len(fields) != 4 {
		return candidate{}, errors.New("a candidate is damaged")
	}
	return candidate{rank: strings.Join(fields[:3], ","), key: fields[3] + "/" + fields[2]}, nil
}

// joinAssociated finds the Provenance that is kept because of what was written. It returns runs of its references.
func (w *Worker) joinAssociated(ctx context.Context, job export.Job, prefix string, a *associated) ([]string, error) {
	if a.kind == "" {
		return nil, nil
	}
	a.kept = spillset.NewBuilder(w.Objects, prefix+"kept/")
	open := spillset.NewBuilder(w.Objects, prefix+"open/")
	follows := w.newRefCollector(job, "").types
	written, newest := "", ""
	keep := func(text string) error {
		c, err := parseCandidate(text)
		if err != nil {
			return err
		}
		return a.kept.Add(ctx, c.key)
	}
	keepNewest := func() error {
		text := newest
		if newest = ""; text == "" {
			return nil
		}
		return keep(text)
	}
	// What was written sorts directly before its candidates.
	err := spillset.Merge(ctx, w.Objects, prefix+"targets/", spillset.Runs(a.targets), func(entry string) error {
		target, text, is := strings.Cut(entry, ",")
		typ, _, _ := strings.Cut(target, "/")
		switch {
		case !is:
			written = target
			return keepNewest()
		case follows[typ]:
			return open.Add(ctx, entry)
		case target != written:
			return nil
		case a.kind == export.LatestProvenance:
			newest = text
			return nil
		}
		return keep(text)
	})
	if err = cmp.Or(err, keepNewest()); err != nil {
		return nil, fmt.Errorf("find associated Provenance: %w", err)
	}
	if a.open, err = w.storeList(ctx, prefix+"undecided/", open); err != nil {
		return nil, err
	}
	refs := spillset.NewBuilder(w.Objects, prefix+"linked/")
	err = w.followLinks(ctx, prefix+"links/", a, a.kept, func(ref string) error { return refs.Add(ctx, ref) })
	if err != nil {
		return nil, err
	}
	return refs.Spill(ctx)
}

// storeList stores the set below the prefix and opens it. It returns nil for an empty set.
func (w *Worker) storeList(ctx context.Context, prefix string, set *spillset.Builder) (*spillset.List, error) {
	stored, err := spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error { return set.Each(ctx, yield) })
	if err != nil || stored.Chunks == 0 {
		return nil, err
	}
	return w.lists.Open(ctx, w.Objects, stored.Prefix, stored.Digest)
}

// followLinks yields the references of those of the candidates whose keys are in the set.
func (w *Worker) followLinks(
	ctx context.Context, prefix string, a *associated, keys *spillset.Builder, yield func(ref string) error,
) error {
	if len(a.links) == 0 {
		return nil
	}
	runs, err := keys.Spill(ctx)
	if err != nil || len(runs) == 0 {
		return err
	}
	current := ""
	runs = slices.Concat(runs, a.links)
	err = spillset.Merge(ctx, w.Objects, prefix, spillset.Runs(runs), func(entry string) error {
		key, ref, is := strings.Cut(entry, ",")
		switch {
		case !is:
			current = key
		case key == current:
			return yield(ref)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("follow associated Provenance: %w", err)
	}
	return nil
}

// undecided yields the candidates for the targets, sorted "Type/id" of referenced types.
func (a *associated) undecided(
	ctx context.Context, targets []string, yield func(target string, c candidate) error,
) error {
	if a.open == nil || len(targets) == 0 {
		return nil
	}
	last := a.open.Place(targets[len(targets)-1] + "-") // directly after the comma
	for chunk := max(a.open.Place(targets[0]), 0); chunk <= last; chunk++ {
		entries, err := a.open.Chunk(ctx, chunk)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			target, text, _ := strings.Cut(entry, ",")
			if _, is := slices.BinarySearch(targets, target); !is {
				continue
			}
			c, err := parseCandidate(text)
			if err != nil {
				return err
			}
			if err := yield(target, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// followProvenance keeps the Provenance about referenced resources that are exported, sorted "Type/id" of one chunk, and
// passes it to collect, or if it is also about a patient adds its key to mixed. read streams the Provenance about some of
// them alone that is not withheld and passes the filters.
func (a *associated) followProvenance(
	ctx context.Context, exported []string, read func(refs []string, yield func(source.Resource) error) error,
	collect func(source.Resource) error, mixed *spillset.Builder,
) error {
	newest := map[string]string{} // rank by target
	each := func(use func(r source.Resource, p provenance, target string) (bool, error)) error {
		return read(exported, func(r source.Resource) error {
			p, err := readProvenance(r)
			if err != nil {
				return err
			}
			for _, target := range p.targets {
				if _, is := slices.BinarySearch(exported, target); !is {
					continue
				}
				if done, err := use(r, p, target); err != nil || done {
					return err
				}
			}
			return nil
		})
	}
	if a.kind == export.LatestProvenance {
		err := each(func(_ source.Resource, p provenance, target string) (bool, error) {
			newest[target] = max(newest[target], p.rank)
			return false, nil
		})
		if err != nil {
			return err
		}
		err = a.undecided(ctx, exported, func(target string, c candidate) error {
			newest[target] = max(newest[target], c.rank)
			return nil
		})
		if err != nil {
			return err
		}
	}
	err := a.undecided(ctx, exported, func(target string, c candidate) error {
		if a.kind == export.LatestProvenance && newest[target] != c.rank {
			return nil
		}
		if err := a.kept.Add(ctx, c.key); err != nil {
			return err
		}
		return mixed.Add(ctx, c.key)
	})
	if err != nil {
		return err
	}
	return each(func(r source.Resource, p provenance, target string) (bool, error) {
		if a.kind == export.LatestProvenance && newest[target] != p.rank {
			return false, nil
		}
		if err := a.kept.Add(ctx, keptKey(0, r.ID)); err != nil {
			return false, err
		}
		return true, collect(r)
	})
}

// cutAssociated stores the list of the Provenance that is kept, for the units about referenced resources too, and adds the
// units that read the candidates again.
func (w *Worker) cutAssociated(
	ctx context.Context, prefix string, a *associated, units []export.Unit,
) ([]export.Unit, error) {
	if a.kind == "" {
		return units, nil
	}
	kept, err := spillset.Write(ctx, w.Objects, prefix+"list/", func(yield func(string) error) error {
		return a.kept.Each(ctx, yield)
	})
	if err != nil {
		return nil, fmt.Errorf("store associated Provenance: %w", err)
	}
	for _, unit := range a.units {
		unit.ID += "-kept"
		unit.Kind = export.KindExportAssociated
		units = append(units, unit)
	}
	for i := range units {
		if units[i].Type == "Provenance" {
			units[i].Kept, units[i].KeptDigest = kept.Prefix, kept.Digest
		}
	}
	return units, nil
}

// A keptList has up to keptChunks chunks of ids in memory, about 25 MB. It looks up more in the stored list.
const keptChunks = 512

// keptList is the list of the Provenance that is kept, with the parts that a unit has used lately.
type keptList struct {
	list   *spillset.List
	cohort *spillset.List
	parts  map[int][]string // by place
	chunks int              // in parts
}

// openKept opens the list of a unit of Provenance that the request limits. For others it returns nil: nothing is dropped.
func (w *Worker) openKept(
	ctx context.Context, request export.Request, unit export.Unit, cohort *spillset.List,
) (*keptList, error) {
	if request.Associated == "" || unit.Type != "Provenance" {
		return nil, nil
	}
	list, err := w.lists.Open(ctx, w.Objects, unit.Kept, unit.KeptDigest)
	if err != nil {
		return nil, fmt.Errorf("open associated Provenance: %w", err)
	}
	return &keptList{list: list, cohort: cohort, parts: map[int][]string{}}, nil
}

// has reports whether the Provenance is kept.
func (k *keptList) has(ctx context.Context, r source.Resource) (bool, error) {
	if k == nil {
		return true, nil
	}
	place := placeOf(k.cohort, r)
	key := keptKey(place, r.ID)
	part, loaded := k.parts[place]
	if !loaded {
		from, to := max(k.list.Place(keptKey(place, "")), 0), k.list.Place(keptKey(place+1, ""))+1
		if to-from > keptChunks {
			return k.list.Contains(ctx, key)
		}
		if k.chunks += to - from; k.chunks > keptChunks {
			clear(k.parts)
			k.chunks = to - from
		}
		var err error
		if part, err = k.list.IDs(ctx, from, to); err != nil {
			return false, fmt.Errorf("look up associated Provenance: %w", err)
		}
		k.parts[place] = part
	}
	_, found := slices.BinarySearch(part, key)
	return found, nil
}

// divided returns the parts of the unit that are read one after the other, so that each uses few places of the list.
func (k *keptList) divided(unit export.Unit) []export.Unit {
	step, chunks := chunksAtOnce(unit), unit.Slice.To-unit.Slice.From
	if k == nil || chunks <= step {
		return []export.Unit{unit}
	}
	var parts []export.Unit
	for from := unit.Slice.From; from < unit.Slice.To; from += step {
		part := unit
		part.Slice = export.Slice{From: from, To: min(from+step, unit.Slice.To)}
		parts = append(parts, part)
	}
	return parts
}
