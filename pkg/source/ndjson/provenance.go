package ndjson

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// link says that a Provenance targets another one: what the second is about the first is about too.
type link struct{ from, to int } // places in the list of Provenance

// resolveProvenance finds the patients of every Provenance: those that it targets, and those of the compartment
// resources that it targets. A target that the folder does not hold tells nothing. A Provenance with no patient is
// served by About when all that it targets is of a referenced type; else it belongs to nobody.
//
// The lines are read a second time, now that the home of every target is known: keeping all targets from the first
// reading would cost more memory than everything else.
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
	// Provenance of Provenance, until no patient is added.
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

// resolveOne finds the patients of one Provenance, or files it with those that have none.
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
		case l == nil: // none of the type is held, or it is no type of the compartment
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
		s.about = append(s.about, aboutTarget{hashRef(s.seed, target.Type, target.ID), uint32(len(s.nobody))})
	}
	s.nobody = append(s.nobody, *e)
	return links
}

// patientsOf returns the numbers of the patients that a Provenance is known to be about.
func (b *builder) patientsOf(s *Source, e *entry) []uint32 {
	switch {
	case e.home == noPatient:
		return nil
	case e.home&manyPeople == 0:
		return []uint32{e.home}
	}
	return s.several[e.place]
}

// addPatients adds to the patients that a Provenance is about and reports whether that made a difference.
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
