package ndjson

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

const (
	// batchSize is the number of lines sorted by place at a time. More lines make fewer and longer reads, at 24 bytes each.
	batchSize = 256 << 10
	// readSize is the maximum size of one read in bytes, unless a single line is longer.
	readSize = 1 << 20
	// maxGap is the number of unwanted bytes between two lines that are cheaper to read than to skip.
	maxGap = 64 << 10
)

var errUnsorted = errors.New("the ids are not sorted, or have a duplicate")

// ForPatients implements source.Source. It ignores Query.AsOf: a folder has no history.
func (s *Source) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	if !fhir.InCompartment(q.Type) {
		return fmt.Errorf("read by patient: %q is not a type of the patient compartment", q.Type)
	}
	if !ascending(q.Patients) {
		return fmt.Errorf("read %s by patient: %w", q.Type, errUnsorted)
	}
	r := reader{source: s}
	each := func(e entry, facts fhir.Facts, body []byte) error {
		return yield(source.Resource{Type: facts.Type, ID: facts.ID, Subjects: r.patients(e, facts), Body: body})
	}
	var batch []entry
	seen := map[uint64]bool{} // places of the lines that have several entries, so that each is read once
	entries := s.kinds[q.Type].entries
	for _, id := range q.Patients {
		rank, known := slices.BinarySearch(s.patients, id)
		if !known || !fhir.IsID(id) { // a sentinel is the home of a Provenance without a patient
			continue
		}
		home := uint32(rank)
		// Ids and homes ascend, so the search continues after the previous patient.
		first, _ := slices.BinarySearchFunc(entries, home, func(e entry, home uint32) int { return cmp.Compare(e.home, home) })
		for entries = entries[first:]; len(entries) > 0 && entries[0].home == home; entries = entries[1:] {
			if entries[0].shared() {
				if seen[entries[0].place] {
					continue
				}
				seen[entries[0].place] = true
			}
			if len(batch) == s.batchSize {
				if err := r.read(ctx, batch, each); err != nil {
					return err
				}
				batch = batch[:0]
			}
			batch = append(batch, entries[0])
		}
	}
	return r.read(ctx, batch, each)
}

// ByID implements source.Source. It ignores ByIDQuery.AsOf: a folder has no history.
func (s *Source) ByID(ctx context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	if !fhir.IsReferenced(q.Type) {
		return fmt.Errorf("read by id: %q is not a referenced type", q.Type)
	}
	if !ascending(q.IDs) {
		return fmt.Errorf("read %s by id: %w", q.Type, errUnsorted)
	}
	k := s.kinds[q.Type]
	r := reader{source: s}
	for ids := range slices.Chunk(q.IDs, s.batchSize) {
		var batch []entry
		for _, id := range ids {
			hash := maphash.String(s.seed, id)
			i, _ := slices.BinarySearch(k.ids, hash)
			for ; i < len(k.ids) && k.ids[i] == hash; i++ {
				batch = append(batch, k.entries[k.at[i]])
			}
		}
		err := r.read(ctx, batch, func(_ entry, facts fhir.Facts, body []byte) error {
			if _, asked := slices.BinarySearch(ids, facts.ID); !asked { // another id with the same hash
				return nil
			}
			return yield(source.Resource{Type: facts.Type, ID: facts.ID, Body: body})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// About implements source.Source. It yields each Provenance once per call.
func (s *Source) About(ctx context.Context, q source.AboutQuery, yield func(source.Resource) error) error {
	var numbers []uint32
	asked := make(map[fhir.Ref]bool, len(q.Refs))
	for _, ref := range q.Refs {
		asked[fhir.Ref(ref)] = true
		hash := hashRef(s.seed, ref.Type, ref.ID)
		i, _ := slices.BinarySearchFunc(s.about, hash, func(a aboutTarget, hash uint64) int {
			return cmp.Compare(a.target, hash)
		})
		for ; i < len(s.about) && s.about[i].target == hash; i++ {
			numbers = append(numbers, s.about[i].entry)
		}
	}
	slices.Sort(numbers)
	r := reader{source: s}
	for run := range slices.Chunk(slices.Compact(numbers), s.batchSize) {
		var batch []entry
		for _, number := range run {
			batch = append(batch, s.orphans[number])
		}
		err := r.read(ctx, batch, func(_ entry, facts fhir.Facts, body []byte) error {
			if !slices.ContainsFunc(facts.Subjects, func(ref fhir.Ref) bool { return asked[ref] }) {
				return nil // another target with the same hash
			}
			return yield(source.Resource{Type: facts.Type, ID: facts.ID, Body: body})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ascending reports whether the ids are sorted and without duplicates.
func ascending(ids []string) bool {
	for i := 1; i < len(ids); i++ {
		if ids[i-1] >= ids[i] {
			return false
		}
	}
	return true
}

// reader reads lines by their places. Each goroutine needs its own.
type reader struct {
	source  *Source
	scanner fhir.Scanner
	buffer  []byte
	named   []string

	rewritten []byte // a line with resolved references
}

// read sorts the batch by place and calls each for every line, checked against the index. The body is valid until each
// returns. An error of each is returned unchanged.
func (r *reader) read(ctx context.Context, batch []entry, each func(entry, fhir.Facts, []byte) error) error {
	slices.SortFunc(batch, func(x, y entry) int { return cmp.Compare(x.place, y.place) })
	for i := 0; i < len(batch); {
		f := r.source.files[batch[i].file()]
		if f.spool == nil && (i == 0 || batch[i].file() != batch[i-1].file()) {
			if err := f.unchanged(); err != nil {
				return err
			}
		}
		// Include neighbours that fit into one read.
		start, end := batch[i].offset(), batch[i].offset()+int64(batch[i].size())
		next := i + 1
		for ; next < len(batch) && batch[next].file() == batch[i].file(); next++ {
			nextEnd := batch[next].offset() + int64(batch[next].size())
			if batch[next].offset()-end > maxGap || nextEnd-start > readSize {
				break
			}
			end = nextEnd
		}
		if cap(r.buffer) > 4*readSize && end-start <= readSize {
			r.buffer = nil // drop the buffer of a very long line
		}
		if int64(cap(r.buffer)) < end-start {
			r.buffer = make([]byte, max(end-start, readSize))
		}
		text := r.buffer[:end-start]
		if err := f.readAt(text, start); err != nil {
			return err
		}
		for ; i < next; i++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			from := batch[i].offset() - start
			body := text[from : from+int64(batch[i].size()) : from+int64(batch[i].size())]
			if maphash.Bytes(r.source.seed, body) != batch[i].check {
				return f.changed()
			}
			facts, err := r.scanner.Scan(body)
			if err == nil && batch[i].resolvable() && r.source.resolved != nil {
				resolved, changed := r.source.resolved.Resolve(r.rewritten[:0], body, facts, func(string, fhir.Form) {})
				if changed {
					r.rewritten, body = resolved, resolved
					facts, err = r.scanner.Scan(body)
				}
			}
			if err != nil { // the indexed line was valid
				return f.changed()
			}
			if err := each(batch[i], facts, body); err != nil {
				return err
			}
		}
	}
	return nil
}

// patients returns the patients of a line, sorted, valid until the next call.
func (r *reader) patients(e entry, facts fhir.Facts) []string {
	r.named = r.named[:0]
	if facts.Type != "Provenance" {
		r.named = source.Named(r.named, facts)
		return r.named
	}
	ranks, several := r.source.several[e.place]
	if !several && e.home != noPatient {
		ranks = []uint32{e.home}
	}
	for _, rank := range ranks {
		r.named = append(r.named, r.source.patients[rank])
	}
	return r.named
}
