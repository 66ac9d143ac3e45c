package ndjson

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// resolveProvenance finds the patients of every Provenance: its targets that are patients, and the patients of its other
// targets in the compartment. A target that is not in the folder has none. About serves a Provenance without patients if
// all of its targets are of referenced types; otherwise it is never served.
//
// It reads the lines a second time, after the patients of every target are known: keeping the targets from the first read
// would take more memory than the rest of the index.
func (b *builder) resolveProvenance(ctx context.Context, s *Source) error {
	all := b.lists["Provenance"]
	if all == nil {
		return nil
	}
	entries := make([]entry, all.n)
	for i := range entries {
		entries[i] = all.at(i).entry
	}
	type link struct{ from, to *entry } // from targets to
	var links []link
	r := reader{source: s}
	err := r.read(ctx, entries, func(_ entry, facts fhir.Facts, body []byte) error {
		e := &all.find(b.hash(facts.ID)).entry
		referenced := 0
		var patients []uint32
		for _, target := range facts.Subjects {
			switch {
			case target.Type == "Patient":
				patients = append(patients, b.number(target.ID))
			case fhir.IsReferenced(target.Type):
				referenced++
			default:
				about := b.lists[target.Type].find(b.hash(target.ID))
				if about != nil && target.Type == "Provenance" {
					links = append(links, link{e, &about.entry})
				} else if about != nil {
					patients = append(patients, b.patientsOf(&about.entry)...)
				}
			}
		}
		b.addPatients(e, patients)
		if e.home != noPatient || referenced == 0 || referenced < fhir.CountTargets(body) {
			return nil
		}
		for _, target := range facts.Subjects {
			s.about = append(s.about, aboutTarget{hashRef(s.seed, target.Type, target.ID), uint32(len(s.orphans))})
		}
		s.orphans = append(s.orphans, *e)
		return nil
	})
	if err != nil {
		return err
	}
	// Provenance about Provenance: repeat until nothing changes.
	for changed := len(links) > 0; changed; {
		changed = false
		for _, l := range links {
			if b.addPatients(l.from, b.patientsOf(l.to)) {
				changed = true
			}
		}
	}
	slices.SortFunc(s.about, func(x, y aboutTarget) int {
		return cmp.Or(cmp.Compare(x.target, y.target), cmp.Compare(x.entry, y.entry))
	})
	return nil
}

// addPatients adds patients to a Provenance and reports whether any of them was new.
func (b *builder) addPatients(e *entry, numbers []uint32) bool {
	known := b.patientsOf(e)
	all := slices.Concat(known, numbers)
	slices.Sort(all)
	all = slices.Compact(all)
	b.setPatients(e, all)
	return len(all) > len(known)
}

func hashRef(seed maphash.Seed, typ, id string) uint64 {
	return maphash.String(seed, typ+"/"+id)
}
