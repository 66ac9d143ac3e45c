package ndjson

import (
	"context"
	"fmt"
	"iter"
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
	if none, err := s.none(ctx, q.Window); none || err != nil {
		return err
	}
	r := reader{source: s}
	return r.batches(ctx, inRange(s, s.kinds[q.Type].entries, q.From, q.To), r.windowed(q.Window, yield))
}

// inRange yields what is of the patients in a range of source.EverythingQuery, and what is without a patient if that is
// in it.
func inRange[E homed](s *Source, sorted []E, from, to string) iter.Seq[E] {
	first := func(id string) int { // index of the first one of this patient or a later one
		rank, _ := slices.BinarySearch(s.patients, id)
		return sort.Search(len(sorted), func(i int) bool { return sorted[i].base().home >= uint32(rank) })
	}
	return func(yield func(E) bool) {
		end := first(source.Somebody) // the sentinels sort after all ids
		start, stop := min(first(from), end), end
		if to != "" {
			stop = min(first(to), end)
		}
		found := [][]E{sorted[start:max(start, stop)]}
		if from == "" {
			found = append(found, sorted[end:])
		}
		for _, part := range found {
			for _, e := range part {
				if e.base().repeated() { // it is in the range of a smaller patient
					continue
				}
				if !yield(e) {
					return
				}
			}
		}
	}
}
