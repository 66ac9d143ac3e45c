package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// With `includeAssociatedData` a Provenance is exported because of its targets (P-26, P-27). Nobody knows them before the
// other types are written, so Provenance is read twice:
//
//  1. The export units of Provenance write nothing. They are candidates: of each line that the guard admits they store its
//     targets and its references. The export units of the other types store what they write (candidates.go).
//  2. The references unit joins both, stores the list of the Provenance that is kept, and follows its references (here).
//  3. Units of KindExportAssociated read Provenance again, under the same guard, and write what is on the list (kept.go).
//
// What has referenced resources as targets is decided where references are followed (followProvenance).
//
// Strings that are stored and merged. A comma sorts before all characters of ids:
//
//	Type/id                            a resource that was written
//	Type/id,recorded,updated,id,place  a candidate for this target; the last of a target is its newest
//	place/id                           a Provenance that is kept
//	place/id,Type/id                   a reference of a candidate

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
	open, err := w.joinTargets(ctx, job, prefix, a)
	if err != nil {
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

// joinTargets adds the candidates for what was written to those that are kept. It returns those for targets of referenced
// types, which are not exported yet.
func (w *Worker) joinTargets(
	ctx context.Context, job export.Job, prefix string, a *associated,
) (open *spillset.Builder, err error) {
	open = spillset.NewBuilder(w.Objects, prefix+"open/")
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
	err = spillset.Merge(ctx, w.Objects, prefix+"targets/", spillset.Runs(a.targets), func(entry string) error {
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
	return open, cmp.Or(err, keepNewest())
}

// storeList stores the set below the prefix and opens it. It returns nil for an empty set.
func (w *Worker) storeList(ctx context.Context, prefix string, set *spillset.Builder) (*spillset.List, error) {
	stored, err := set.Store(ctx, prefix)
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
	alone := func(yield aboutExported) error {
		return read(exported, func(r source.Resource) error {
			p, err := readProvenance(r)
			if err != nil {
				return err
			}
			p.targets = slices.DeleteFunc(p.targets, func(target string) bool {
				_, is := slices.BinarySearch(exported, target)
				return !is
			})
			return yield(r, p)
		})
	}
	keeps := func(string, string) bool { return true }
	if a.kind == export.LatestProvenance {
		newest, err := a.newest(ctx, exported, alone)
		if err != nil {
			return err
		}
		keeps = func(target, rank string) bool { return newest[target] == rank }
	}
	err := a.undecided(ctx, exported, func(target string, c candidate) error {
		if !keeps(target, c.rank) {
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
	return alone(func(r source.Resource, p provenance) error {
		if !slices.ContainsFunc(p.targets, func(target string) bool { return keeps(target, p.rank) }) {
			return nil
		}
		if err := a.kept.Add(ctx, keptKey(0, r.ID)); err != nil {
			return err
		}
		return collect(r)
	})
}

// aboutExported takes a Provenance with those of its targets that are exported.
type aboutExported func(r source.Resource, p provenance) error

// newest returns the rank of the newest Provenance of each target: of the undecided, and of those that alone streams.
func (a *associated) newest(
	ctx context.Context, targets []string, alone func(aboutExported) error,
) (map[string]string, error) {
	newest := map[string]string{}
	err := alone(func(_ source.Resource, p provenance) error {
		for _, target := range p.targets {
			newest[target] = max(newest[target], p.rank)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = a.undecided(ctx, targets, func(target string, c candidate) error {
		newest[target] = max(newest[target], c.rank)
		return nil
	})
	return newest, err
}

// cutAssociated stores the list of the Provenance that is kept, for the units about referenced resources too, and adds the
// units that read the candidates again.
func (w *Worker) cutAssociated(
	ctx context.Context, prefix string, a *associated, units []export.Unit,
) ([]export.Unit, error) {
	if a.kind == "" {
		return units, nil
	}
	kept, err := a.kept.Store(ctx, prefix+"list/")
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
