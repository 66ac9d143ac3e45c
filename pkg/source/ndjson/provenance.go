package ndjson

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// maxPatients bounds the patients of one Provenance, and with them the work and the memory for chains of Provenance. One
// that reaches more, or one that targets it, is about source.Somebody alone: only Everything returns it.
const maxPatients = 100

// tooMany is found.why of a Provenance with more patients. Its only one is source.Somebody.
var tooMany = uint8(slices.Index(homeless, export.TooManyReferences))

// provenance is a Provenance while its patients are looked up.
type provenance struct {
	*found
	sources []int // numbers of the Provenance that target it
}

// resolveProvenance finds the patients of every Provenance: its targets that are patients, and the patients of its other
// targets in the compartment. It is also about source.Somebody if it has a target that is not in the folder, or whose
// patient is unknown (spec 10). Without patients it is served by About, if all of its targets are of referenced types, and
// by Everything.
//
// It reads the lines a second time, after the patients of every target are known: keeping the targets from the first read
// would take more memory than the rest of the index.
func (b *builder) resolveProvenance(ctx context.Context, s *Source) error {
	all := b.lists["Provenance"]
	if all == nil {
		return nil
	}
	nodes := make([]provenance, all.n)
	for i := range nodes {
		nodes[i].found = all.at(i)
	}
	somebody := b.number(source.Somebody)
	read := func(f *found, facts fhir.Facts, _ []byte) {
		n := nodeOf(nodes, f.hash)
		node := &nodes[n]
		targets := slices.Clone(facts.Subjects)
		slices.SortFunc(targets, func(x, y fhir.Ref) int {
			return cmp.Or(cmp.Compare(x.Type, y.Type), cmp.Compare(x.ID, y.ID))
		})
		targets = slices.Compact(targets)
		referenced := 0
		// One by one, so that the memory is bounded by maxPatients and not by the patients of all targets.
		add := func(patients ...uint32) {
			for _, patient := range patients {
				if node.why == tooMany {
					return
				}
				b.addPatient(node.found, patient, somebody)
			}
		}
		add(b.numbersOf(source.Named(nil, facts))...)
		for _, target := range targets {
			if target.Type == "Patient" {
				continue
			}
			held := b.lists[target.Type].find(b.hash(target.ID))
			switch {
			case held == nil, !fhir.IsExportable(target.Type): // which patients the other types are about is not read
				add(somebody)
			case fhir.IsReferenced(target.Type):
				referenced++
			case target.Type == "Provenance":
				to := nodeOf(nodes, held.hash)
				nodes[to].sources = append(nodes[to].sources, n)
			case held.home == noPatient && homeless[held.why] != export.NoPatient:
				add(somebody)
			default:
				add(b.patientsOf(&held.entry)...)
			}
		}
		if referenced > 0 && referenced == len(targets) && node.home == noPatient {
			for _, target := range targets {
				s.about = append(s.about, aboutTarget{hashRef(s.seed, target.Type, target.ID), uint32(len(s.orphans))})
			}
			s.orphans = append(s.orphans, node.entry)
		}
	}
	if err := b.each(ctx, s, "Provenance", func(*found) bool { return true }, read); err != nil {
		return err
	}
	b.spread(nodes, somebody)
	slices.SortFunc(s.about, func(x, y aboutTarget) int {
		return cmp.Or(cmp.Compare(x.target, y.target), cmp.Compare(x.entry, y.entry))
	})
	return nil
}

// nodeOf returns the number of the node with the id hash.
func nodeOf(nodes []provenance, hash [2]uint64) int {
	n, _ := slices.BinarySearchFunc(nodes, hash, func(node provenance, hash [2]uint64) int { return node.compareID(hash) })
	return n
}

// spread adds the patients of each Provenance to those that target it. Each patient of each Provenance is passed on once,
// so the time is linear in the links for chains of any length, and for loops.
func (b *builder) spread(nodes []provenance, somebody uint32) {
	type step struct {
		node    int
		patient uint32 // many: the node has too many
	}
	const many = noPatient
	var pending []step
	for n := range nodes {
		if nodes[n].why == tooMany {
			pending = append(pending, step{n, many})
			continue
		}
		for _, patient := range b.patientsOf(&nodes[n].entry) {
			pending = append(pending, step{n, patient})
		}
	}
	for len(pending) > 0 {
		next := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		for _, from := range nodes[next.node].sources {
			f := nodes[from].found
			switch {
			case f.why == tooMany:
				continue
			case next.patient == many:
				b.overflow(f, somebody)
			case !b.addPatient(f, next.patient, somebody):
				continue
			}
			if f.why == tooMany {
				pending = append(pending, step{from, many})
			} else {
				pending = append(pending, step{from, next.patient})
			}
		}
	}
}

// addPatient adds a patient to a Provenance and reports whether it is new.
func (b *builder) addPatient(f *found, number, somebody uint32) bool {
	known := b.patientsOf(&f.entry)
	at, held := slices.BinarySearch(known, number)
	if f.why == tooMany || held {
		return false
	}
	if len(known) == maxPatients {
		b.overflow(f, somebody)
		return true
	}
	b.setPatients(&f.entry, slices.Insert(slices.Clone(known), at, number))
	return true
}

func (b *builder) overflow(f *found, somebody uint32) {
	delete(b.several, f.place)
	b.setPatients(&f.entry, []uint32{somebody})
	f.why = tooMany
}

func hashRef(seed maphash.Seed, typ, id string) uint64 {
	return maphash.String(seed, typ+"/"+id)
}
