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

// maxPatients bounds the patients of one Provenance, and with them the work and the memory for chains of Provenance. No
// export contains one that reaches more, or one that targets it.
const maxPatients = 100

// tooMany is found.why of a Provenance with more patients. Its only one is source.Somebody.
var tooMany = uint8(slices.Index(homeless, export.TooManyReferences))

// provenance is a Provenance while its patients are looked up.
type provenance struct {
	*found
	targets []int // other Provenance that it targets
	sources []int // those that target it
	waiting bool
}

// resolveProvenance finds the patients of every Provenance: its targets that are patients, and the patients of its other
// targets in the compartment. It is also about source.Somebody if it has a target that is not in the folder, or whose
// patient is unknown (spec 10). About serves a Provenance without patients if all of its targets are of referenced types;
// otherwise it is never served.
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
		referenced := 0
		patients := b.numbersOf(source.Named(nil, facts))
		for _, target := range facts.Subjects {
			if target.Type == "Patient" {
				continue
			}
			held := b.lists[target.Type].find(b.hash(target.ID))
			switch {
			case held == nil:
				patients = append(patients, somebody)
			case fhir.IsReferenced(target.Type):
				referenced++
			case target.Type == "Provenance":
				to := nodeOf(nodes, held.hash)
				node.targets = append(node.targets, to)
				nodes[to].sources = append(nodes[to].sources, n)
			case held.home == noPatient && homeless[held.why] != export.NoPatient:
				patients = append(patients, somebody)
			default:
				patients = append(patients, b.patientsOf(&held.entry)...)
			}
		}
		b.addPatients(node.found, patients, somebody)
		if referenced > 0 && referenced == len(facts.Subjects) && node.home == noPatient {
			for _, target := range facts.Subjects {
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

// spread adds the patients of each Provenance to those that target it. Targets come first, so that a chain of any length
// takes one step for each link; only loops take more, and never more than maxPatients for each link.
func (b *builder) spread(nodes []provenance, somebody uint32) {
	queue := targetsFirst(nodes)
	for _, n := range queue {
		nodes[n].waiting = true
	}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		nodes[n].waiting = false
		changed := false
		for _, to := range nodes[n].targets {
			if nodes[to].why == tooMany && nodes[n].why != tooMany {
				b.overflow(nodes[n].found, somebody)
				changed = true
			}
			if b.addPatients(nodes[n].found, b.patientsOf(&nodes[to].entry), somebody) {
				changed = true
			}
		}
		for _, from := range nodes[n].sources {
			if changed && !nodes[from].waiting {
				nodes[from].waiting = true
				queue = append(queue, from)
			}
		}
	}
}

// targetsFirst returns the numbers of all nodes, those of targets before those that target them, except in loops.
func targetsFirst(nodes []provenance) []int {
	type step struct{ node, next int } // next: of the targets
	order, seen := make([]int, 0, len(nodes)), make([]bool, len(nodes))
	var path []step
	for first := range nodes {
		if seen[first] {
			continue
		}
		seen[first] = true
		for path = append(path, step{node: first}); len(path) > 0; {
			last := &path[len(path)-1]
			if last.next == len(nodes[last.node].targets) {
				order = append(order, last.node)
				path = path[:len(path)-1]
				continue
			}
			to := nodes[last.node].targets[last.next]
			last.next++
			if !seen[to] {
				seen[to] = true
				path = append(path, step{node: to})
			}
		}
	}
	return order
}

// addPatients adds patients to a Provenance and reports whether any of them was new.
func (b *builder) addPatients(f *found, numbers []uint32, somebody uint32) bool {
	known := b.patientsOf(&f.entry)
	if f.why == tooMany || len(numbers) == 0 {
		return false
	}
	all := slices.Concat(known, numbers)
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > maxPatients {
		b.overflow(f, somebody)
		return true
	}
	b.setPatients(&f.entry, all)
	return len(all) > len(known)
}

func (b *builder) overflow(f *found, somebody uint32) {
	delete(b.several, f.place)
	b.setPatients(&f.entry, []uint32{somebody})
	f.why = tooMany
}

func hashRef(seed maphash.Seed, typ, id string) uint64 {
	return maphash.String(seed, typ+"/"+id)
}
