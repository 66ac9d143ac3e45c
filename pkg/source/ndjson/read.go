package ndjson

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sort"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

const (
	// batchSize is the number of lines sorted by place at a time. More lines make fewer and longer reads, at 24 bytes each.
	batchSize = 256 << 10
	// readSize is the maximum of one read in bytes, unless a single line is longer.
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
	k, held := s.kinds[q.Type]
	if !held {
		return nil
	}
	entries := k.entries
	r := reader{source: s}
	each := func(e entry, facts fhir.Facts, body []byte) error {
		patients := r.patients(e, facts)
		// A resource about several of the asked patients has an entry for each; yield it for the first.
		if len(patients) > 1 && s.patients.at(int(e.home)) != firstOf(patients, q.Patients) {
			return nil
		}
		return yield(source.Resource{Type: facts.Type, ID: facts.ID, Subjects: patients, Body: body})
	}
	var batch []entry
	at := 0 // ids and homes ascend, so the search continues from here
	for _, id := range q.Patients {
		home, known := s.patients.rank(id)
		if !known {
			continue
		}
		at = seek(entries, at, home)
		for ; at < entries.n && entries.at(at).home == home; at++ {
			if len(batch) == s.batchSize {
				if err := r.read(ctx, batch, each); err != nil {
					return err
				}
				batch = batch[:0]
			}
			batch = append(batch, *entries.at(at))
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
				batch = append(batch, *k.entries.at(i))
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
		i := sort.Search(len(s.about), func(i int) bool { return s.about[i].target >= hash })
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

// firstOf returns the first of the ids that was asked for.
func firstOf(ids, asked []string) string {
	for _, id := range ids {
		if _, found := slices.BinarySearch(asked, id); found {
			return id
		}
	}
	return ""
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

// seek returns the index of the first entry from at on whose home is not below the given one. It searches exponentially:
// the next patient of a dense query is close.
func seek(entries *chunked[entry], at int, home uint32) int {
	step := 1
	for at+step < entries.n && entries.at(at+step).home < home {
		step *= 2
	}
	from, to := at+step/2, min(at+step+1, entries.n)
	return from + sort.Search(to-from, func(i int) bool { return entries.at(from+i).home >= home })
}

// reader reads lines by their places. Each goroutine needs its own.
type reader struct {
	source  *Source
	scanner fhir.Scanner
	buffer  []byte
	last    []string // the patients of the line before
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
		start, end := batch[i].offset(), batch[i].offset()+int64(batch[i].size)
		next := i + 1
		for ; next < len(batch) && batch[next].file() == batch[i].file(); next++ {
			nextEnd := batch[next].offset() + int64(batch[next].size)
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
			body := text[from : from+int64(batch[i].size) : from+int64(batch[i].size)]
			if maphash.Bytes(r.source.seed, body) != batch[i].check {
				return f.changed()
			}
			facts, err := r.scanner.Scan(body)
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

// patients returns the patients of a line, sorted. Neighbouring lines share one slice.
func (r *reader) patients(e entry, facts fhir.Facts) []string {
	s := r.source
	switch facts.Type {
	case "Patient":
		return r.keep(facts.ID)
	case "Provenance":
		if ranks, ok := s.several[e.place]; ok {
			ids := make([]string, 0, len(ranks))
			for _, rank := range ranks {
				ids = append(ids, s.patients.at(int(rank)))
			}
			return ids
		}
		return r.keep(s.patients.at(int(e.home)))
	}
	home, several := homeOf(facts.Subjects)
	if !several {
		return r.keep(home)
	}
	var ids []string
	for _, ref := range facts.Subjects {
		if ref.Type == "Patient" {
			ids = append(ids, ref.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (r *reader) keep(id string) []string {
	if len(r.last) != 1 || r.last[0] != id {
		r.last = []string{id}
	}
	return r.last
}
