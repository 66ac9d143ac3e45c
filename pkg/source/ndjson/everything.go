package ndjson

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Patients implements source.Source. It ignores asOf: a folder has no history.
func (s *Source) Patients(ctx context.Context, _ time.Time, yield func(id string) error) error {
	for rank, held := range s.held {
		if !held {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(s.patients[rank]); err != nil {
			return err
		}
	}
	return nil
}

// Everything implements source.Source. It ignores EverythingQuery.AsOf: a folder has no history.
func (s *Source) Everything(ctx context.Context, q source.EverythingQuery, yield func(source.Resource) error) error {
	if !fhir.IsStored(q.Type) {
		return fmt.Errorf("read everything: %q is not a type that a source holds", q.Type)
	}
	r := reader{source: s}
	each := func(e entry, facts fhir.Facts, body []byte) error {
		return yield(source.Resource{Type: facts.Type, ID: facts.ID, Subjects: r.patients(e, facts), Body: body})
	}
	var batch []entry
	for _, entries := range s.inRange(q) {
		for _, e := range entries {
			if e.repeated() { // it is in the range of a smaller patient
				continue
			}
			if len(batch) == s.batchSize {
				if err := r.read(ctx, batch, each); err != nil {
					return err
				}
				batch = batch[:0]
			}
			batch = append(batch, e)
		}
	}
	return r.read(ctx, batch, each)
}

// inRange returns the entries of the patients in the range of q, and those without a patient if they are in it.
func (s *Source) inRange(q source.EverythingQuery) [][]entry {
	entries := s.kinds[q.Type].entries
	first := func(id string) int { // index of the first entry of this patient or a later one
		rank, _ := slices.BinarySearch(s.patients, id)
		return sort.Search(len(entries), func(i int) bool { return entries[i].home >= uint32(rank) })
	}
	end := first(source.Somebody) // the sentinels sort after all ids
	from, to := min(first(q.From), end), end
	if q.To != "" {
		to = min(first(q.To), end)
	}
	found := [][]entry{entries[from:max(from, to)]}
	if q.From == "" {
		found = append(found, entries[end:])
	}
	return found
}
