package ndjson

import (
	"cmp"
	"context"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// previous is what a resource was before, while the index is built: a version, or the deletion if the files have none.
type previous struct {
	found
	now uint64 // place of the line that changed it: a version, one that is refused, or a deletion
}

// former is a resource that was deleted, or is about others now.
type former struct {
	entry       // the previous version, with its patients; without one, the deletion
	now   entry // the version that is served, or only the place of the line by which none is
}

func (f former) held() bool    { return f.now.size() > 0 }
func (f former) unknown() bool { return f.place == f.now.place }

// differ reports whether the two versions are about other patients.
func (b *builder) differ(before, now *found) bool {
	return before.home != now.home || !slices.Equal(b.patientsOf(&before.entry), b.patientsOf(&now.entry))
}

// formerly returns what the resource with the id hash was before, or nil.
func (l *list) formerly(hash [2]uint64) *previous {
	if l == nil {
		return nil
	}
	i, known := slices.BinarySearchFunc(l.former, hash, func(p previous, hash [2]uint64) int { return p.compareID(hash) })
	if !known || l.former[i].why == deletes {
		return nil
	}
	return &l.former[i]
}

// resolveFormer finds the patients of the previous versions that have references to resolve, and of those of Provenance,
// and removes those about the same patients as what is served.
func (b *builder) resolveFormer(ctx context.Context, s *Source) error {
	for typ := range b.lists {
		if typ == "Provenance" { // their targets first
			continue
		}
		err := b.readFormer(ctx, s, typ, func(p *previous, facts fhir.Facts) {
			b.setPatients(&p.entry, b.numbersOf(source.Named(nil, facts)))
		})
		if err != nil {
			return err
		}
	}
	return b.readFormer(ctx, s, "Provenance", func(p *previous, facts fhir.Facts) {
		somebody := b.number(source.Somebody)
		for _, patient := range b.numbersOf(source.Named(nil, facts)) {
			b.addPatient(&p.found, patient, somebody)
		}
		for _, target := range facts.Subjects {
			for _, patient := range b.patientsOfTarget(target, somebody) {
				if p.why == tooMany {
					return
				}
				b.addPatient(&p.found, patient, somebody)
			}
		}
	})
}

// patientsOfTarget returns the patients of a target of a previous Provenance, which may have been deleted with it. Those of
// a Provenance that was deleted too are not looked up.
func (b *builder) patientsOfTarget(target fhir.Ref, somebody uint32) []uint32 {
	if target.Type == "Patient" { // Named has it
		return nil
	}
	l, hash := b.lists[target.Type], b.hash(target.ID)
	held := l.find(hash)
	if before := l.formerly(hash); held == nil && before != nil && target.Type != "Provenance" {
		held = &before.found
	}
	switch {
	case held == nil, !fhir.IsExportable(target.Type):
		return []uint32{somebody}
	case fhir.IsReferenced(target.Type):
		return nil
	case held.home == noPatient && (target.Type == "Provenance" || homeless[held.why] != export.NoPatient):
		return []uint32{somebody}
	}
	return b.patientsOf(&held.entry)
}

func (b *builder) readFormer(ctx context.Context, s *Source, typ string, read func(*previous, fhir.Facts)) error {
	l := b.lists[typ]
	if l == nil {
		return nil
	}
	r := reader{source: s}
	err := r.batches(ctx, func(yield func(entry) bool) {
		for i := range l.former {
			p := &l.former[i]
			if p.why != deletes && (typ == "Provenance" || p.resolvable()) && !yield(p.entry) {
				return
			}
		}
	}, func(_ entry, facts fhir.Facts, _ []byte) error {
		read(l.formerly(b.hash(facts.ID)), facts)
		return nil
	})
	l.former = slices.DeleteFunc(l.former, func(p previous) bool {
		now := l.find(p.hash)
		return now != nil && !b.differ(&p.found, now)
	})
	return err
}

// shrinkFormer moves what the resources of one type were before into the source, with an entry for each patient.
func (b *builder) shrinkFormer(s *Source, typ string, ranks []uint32) {
	l := b.lists[typ]
	sentinels, _ := slices.BinarySearch(s.patients, source.Somebody)
	var all []former
	for _, p := range l.former {
		now := entry{place: p.now}
		if served := l.find(p.hash); served != nil {
			now = served.entry
			now.home = b.homesOf(nil, typ, &now, ranks)[0]
		}
		homes := b.homesOf(nil, typ, &p.entry, ranks)
		if typ == "Provenance" && len(homes) > 1 {
			s.several[p.place] = homes
		}
		patients, _ := slices.BinarySearch(homes, uint32(sentinels))
		for e := range p.ofEach(homes, patients) {
			all = append(all, former{e, now})
		}
	}
	l.former = nil
	slices.SortFunc(all, func(x, y former) int { return cmp.Or(cmp.Compare(x.home, y.home), cmp.Compare(x.place, y.place)) })
	if len(all) > 0 {
		s.former[typ] = slices.Clip(all)
	}
}
