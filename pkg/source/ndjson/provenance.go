package ndjson

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// link is a Provenance that targets another one. The patients of the second are patients of the first.
type link struct{ from, to int } // places in the list of Provenance

// resolveProvenance finds the patients of every Provenance: its targets that are patients, and the patients of its other
// targets in the compartment. A target that is not in the folder has none. A Provenance without patient is served by
// About if all of its targets are of referenced types, else never.
//
// It reads the lines a second time, when the home of every target is known: keeping the targets of the first reading
// would take more memory than the rest of the index.
func (b *builder) resolveProvenance(ctx context.Context, s *Source) error {
	s.several = map[uint64][]uint32{}
	all := b.lists["Provenance"]
	if all == nil {
		return nil
	}
	order := make([]uint32, all.Len())
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int {
		return cmp.Compare(all.entries.at(int(x)).place, all.entries.at(int(y)).place)
	})

	r := reader{source: s}
	var links []link
	batch := make([]entry, 0, chunkSize)
	for run := range slices.Chunk(order, chunkSize) {
		batch = batch[:0]
		for _, i := range run {
			batch = append(batch, *all.entries.at(int(i)))
		}
		next := 0
		err := r.read(ctx, batch, func(_ entry, facts fhir.Facts, body []byte) error {
			number := int(run[next])
			next++
			links = append(links, b.resolveOne(s, number, facts.Subjects, body)...)
			return nil
		})
		if err != nil {
			return err
		}
	}
	// Provenance of Provenance, until nothing changes.
	for changed := len(links) > 0; changed; {
		changed = false
		for _, l := range links {
			from, to := all.entries.at(l.from), all.entries.at(l.to)
			if b.addPatients(s, from, b.patientsOf(s, to)) {
				changed = true
			}
		}
	}
	slices.SortFunc(s.about, func(x, y aboutTarget) int {
		return cmp.Or(cmp.Compare(x.target, y.target), cmp.Compare(x.entry, y.entry))
	})
	return nil
}

// resolveOne finds the patients of one Provenance, or adds it to those without patient.
func (b *builder) resolveOne(s *Source, number int, targets []fhir.Ref, body []byte) (links []link) {
	e := b.lists["Provenance"].entries.at(number)
	referenced := 0
	var patients []uint32
	for _, target := range targets {
		switch l := b.lists[target.Type]; {
		case target.Type == "Patient":
			patients = append(patients, b.number(target.ID))
		case fhir.IsReferenced(target.Type):
			referenced++
		case l == nil: // the folder has none of the type, or the type is not exported
		default:
			i, held := l.find(b.hash(target.ID))
			if !held {
				continue
			}
			switch about := l.entries.at(i); {
			case target.Type == "Provenance":
				links = append(links, link{number, i})
			case about.home == noPatient:
			case about.home&manyPeople == 0:
				patients = append(patients, about.home)
			default:
				patients = append(append(patients, about.home&^manyPeople), b.furtherOf(about.place)...)
			}
		}
	}
	b.addPatients(s, e, patients)
	if e.home != noPatient || referenced == 0 || referenced < fhir.CountTargets(body) {
		return links
	}
	for _, target := range targets {
		s.about = append(s.about, aboutTarget{hashRef(s.seed, target.Type, target.ID), uint32(len(s.orphans))})
	}
	s.orphans = append(s.orphans, *e)
	return links
}

// patientsOf returns the numbers of the patients found so far of a Provenance.
func (b *builder) patientsOf(s *Source, e *entry) []uint32 {
	switch {
	case e.home == noPatient:
		return nil
	case e.home&manyPeople == 0:
		return []uint32{e.home}
	}
	return s.several[e.place]
}

// addPatients adds patients to a Provenance and reports whether any of them was new.
func (b *builder) addPatients(s *Source, e *entry, numbers []uint32) bool {
	known := b.patientsOf(s, e)
	all := slices.Concat(known, numbers)
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) == len(known) {
		return false
	}
	e.home = slices.MinFunc(all, func(x, y uint32) int { return cmp.Compare(b.ids[x], b.ids[y]) })
	if len(all) > 1 {
		e.home |= manyPeople
		s.several[e.place] = all
	}
	return true
}

func hashRef(seed maphash.Seed, typ, id string) uint64 {
	return maphash.String(seed, typ+"/"+id)
}
