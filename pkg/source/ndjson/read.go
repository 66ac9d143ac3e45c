package ndjson

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
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
	if none, err := s.none(ctx, q.Window); none || err != nil {
		return err
	}
	r := reader{source: s}
	return r.batches(ctx, ofPatients(s, s.kinds[q.Type].entries, q.Patients), r.windowed(q.Window, yield))
}

// homed is an entry, or a type with one. A slice of them that is sorted by home and place is an index by patient.
type homed interface{ base() entry }

func (e entry) base() entry { return e }

// ofPatients yields what is about any of the patients, which are sorted, each once.
func ofPatients[E homed](s *Source, sorted []E, patients []string) iter.Seq[E] {
	return func(yield func(E) bool) {
		rest := sorted
		seen := map[uint64]bool{} // places of the lines that have several entries, so that each is read once
		for _, id := range patients {
			rank, known := slices.BinarySearch(s.patients, id)
			if !known || !fhir.IsID(id) { // a sentinel is the home of a Provenance without a patient
				continue
			}
			home := uint32(rank)
			// Ids and homes ascend, so the search continues after the previous patient.
			first, _ := slices.BinarySearchFunc(rest, home, func(e E, home uint32) int { return cmp.Compare(e.base().home, home) })
			for rest = rest[first:]; len(rest) > 0; rest = rest[1:] {
				e := rest[0].base()
				if e.home != home {
					break
				}
				if e.shared() {
					if seen[e.place] {
						continue
					}
					seen[e.place] = true
				}
				if !yield(rest[0]) {
					return
				}
			}
		}
	}
}

// ByID implements source.Source. It ignores ByIDQuery.AsOf: a folder has no history.
func (s *Source) ByID(ctx context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	if !source.HasByID(q.Type) {
		return fmt.Errorf("read by id: %q is not a type that is read by id", q.Type)
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

// windowed returns a function for read that yields the resources in the window.
func (r *reader) windowed(w source.Window, yield func(source.Resource) error) func(entry, fhir.Facts, []byte) error {
	return func(e entry, facts fhir.Facts, body []byte) error {
		if !inWindow(w, facts) {
			return nil
		}
		return yield(source.Resource{Type: facts.Type, ID: facts.ID, Subjects: r.patients(e, facts), Body: body})
	}
}

// batches reads the entries as read does, in batches.
func (r *reader) batches(ctx context.Context, entries iter.Seq[entry], each func(entry, fhir.Facts, []byte) error) error {
	for batch := range chunks(entries, r.source.batchSize) {
		if err := r.read(ctx, batch, each); err != nil {
			return err
		}
	}
	return nil
}

// read sorts the batch by place and calls each for every line, with references resolved. The body is valid until each
// returns. An error of each is returned unchanged.
func (r *reader) read(ctx context.Context, batch []entry, each func(entry, fhir.Facts, []byte) error) error {
	return r.lines(ctx, batch, func(e entry, body []byte) error {
		facts, body, err := r.scan(e, body)
		if err != nil {
			return err
		}
		return each(e, facts, body)
	})
}

// scan returns the facts of a line of read, and the line with its references resolved, valid until the next call.
func (r *reader) scan(e entry, body []byte) (fhir.Facts, []byte, error) {
	facts, err := r.scanner.Scan(body)
	if err == nil && e.resolvable() && r.source.resolved != nil {
		resolved, changed := r.source.resolved.Resolve(r.rewritten[:0], body, facts, func(string, fhir.Form) {})
		if changed {
			r.rewritten, body = resolved, resolved
			facts, err = r.scanner.Scan(body)
		}
	}
	if err != nil { // the indexed line was valid
		err = r.source.files[e.file()].changed()
	}
	return facts, body, err
}

// lines sorts the batch by place and calls each for every line as it is in the file, checked against the index.
func (r *reader) lines(ctx context.Context, batch []entry, each func(entry, []byte) error) error {
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
			if err := each(batch[i], body); err != nil {
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
