package ndjson

import (
	"cmp"
	"iter"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// shrink moves one type into the source. A resource about several patients gets an entry for each.
func (b *builder) shrink(s *Source, typ string, ranks []uint32) {
	l := b.lists[typ]
	k := kind{entries: make([]entry, 0, l.n)}
	orphans := map[uint64]bool{}
	if typ == "Provenance" {
		for _, e := range s.orphans {
			orphans[e.place] = true
		}
	}
	sentinels, _ := slices.BinarySearch(s.patients, source.Somebody) // the rank of the first one
	var size source.TypeSize
	var homes []uint32
	for i := range l.n {
		f := *l.at(i)
		if i%chunkSize == chunkSize-1 {
			l.chunks[i/chunkSize] = nil // free
		}
		size.Resources++
		size.Bytes += int64(f.size()) + 1
		if source.HasByID(typ) {
			k.ids = append(k.ids, f.hash[0])
		}
		homes = b.homesOf(homes[:0], typ, &f.entry, ranks)
		if typ == "Provenance" && len(homes) > 1 {
			s.several[f.place] = slices.Clone(homes)
		}
		patients, _ := slices.BinarySearch(homes, uint32(sentinels))
		if patients == 0 && fhir.InCompartment(typ) && !orphans[f.place] {
			b.leaveOut(typ, f.reason(typ, homes[0]), location{f.file(), 0, b.files[f.file()].name})
		}
		for e := range f.ofEach(homes, patients) {
			k.entries = append(k.entries, e)
		}
	}
	if source.HasByID(typ) {
		k.at = orderByPlace(k.entries)
	} else {
		slices.SortFunc(k.entries, func(x, y entry) int {
			return cmp.Or(cmp.Compare(x.home, y.home), cmp.Compare(x.place, y.place))
		})
	}
	s.kinds[typ], s.sizes.Types[typ] = k, size
}

// homesOf appends the ranks of the patients of e, sorted, or noPatient.
func (b *builder) homesOf(homes []uint32, typ string, e *entry, ranks []uint32) []uint32 {
	if fhir.InCompartment(typ) {
		for _, number := range b.patientsOf(e) {
			homes = append(homes, ranks[number])
		}
	}
	if len(homes) == 0 {
		return append(homes, noPatient)
	}
	slices.Sort(homes)
	return homes
}

// ofEach yields the entry of each patient of e. The first ones of homes are patients; if none is, there is one entry for
// all.
func (e entry) ofEach(homes []uint32, patients int) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		if len(homes) > 1 {
			e.bytes |= shared
		}
		for n, home := range homes[:max(patients, 1)] {
			if n == 1 {
				e.bytes |= repeated
			}
			if e.home = home; !yield(e) {
				return
			}
		}
	}
}

// reason returns why a resource of the compartment without a patient, whose home is a sentinel or noPatient, is in no
// export of patients.
func (f *found) reason(typ string, home uint32) export.Reason {
	if typ == "Provenance" && home != noPatient && f.why != tooMany {
		return export.UnresolvedPatient
	}
	return homeless[f.why]
}

// orderByPlace sorts entries without a patient, and returns the new index of each.
func orderByPlace(entries []entry) []uint32 {
	for i := range entries {
		entries[i].home = uint32(i) // needs no memory of its own
	}
	slices.SortFunc(entries, func(x, y entry) int { return cmp.Compare(x.place, y.place) })
	at := make([]uint32, len(entries))
	for i := range entries {
		at[entries[i].home] = uint32(i)
		entries[i].home = noPatient
	}
	return at
}
