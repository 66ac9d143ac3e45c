package ndjson

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// NewPatients implements source.Source: it returns none, or all if the folder was changed after the instant.
func (s *Source) NewPatients(ctx context.Context, after, asOf time.Time, yield func(id string) error) error {
	if same, err := s.history.sameAs(ctx, after); same || err != nil {
		return err
	}
	return s.Patients(ctx, asOf, yield)
}

// Mentions implements source.Source: a folder does not know.
func (s *Source) Mentions(context.Context, source.MentionsQuery, func(by, ref string) error) error {
	return source.ErrMentionsUnknown
}

// none reports whether the window has nothing because the folder is as it was.
func (s *Source) none(ctx context.Context, w source.Window) (bool, error) {
	if w.After.IsZero() {
		return false, nil
	}
	return s.history.sameAs(ctx, w.After)
}

// inWindow reports whether a line that none does not exclude is in the window.
func inWindow(w source.Window, facts fhir.Facts) bool {
	return w.Since.IsZero() || facts.LastUpdated.IsZero() || facts.LastUpdated.After(w.Since)
}

// Deleted implements source.Source. It ignores DeletedQuery.AsOf: a folder has no history. At is when the file with the
// deletion, or with the version that is served, was changed.
func (s *Source) Deleted(ctx context.Context, q source.DeletedQuery, yield func(source.Deletion) error) error {
	switch {
	case !fhir.IsStored(q.Type):
		return fmt.Errorf("read what was deleted: %q is not a type that a source holds", q.Type)
	case !ascending(q.Patients):
		return fmt.Errorf("read deleted %s by patient: %w", q.Type, errUnsorted)
	}
	if none, err := s.none(ctx, q.Window); none || err != nil {
		return err
	}
	found := inRange(s, s.former[q.Type], q.From, q.To)
	if q.Patients != nil {
		found = ofPatients(s, s.former[q.Type], q.Patients)
	}
	d := deletions{before: reader{source: s}, now: reader{source: s}, yield: yield}
	for batch := range chunks(found, s.batchSize) {
		batch = slices.DeleteFunc(batch, func(f former) bool {
			return !q.Since.IsZero() && !s.files[f.now.file()].modified.After(q.Since)
		})
		if err := d.read(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// chunks yields the values in slices of at most n, which are reused.
func chunks[E any](values iter.Seq[E], n int) iter.Seq[[]E] {
	return func(yield func([]E) bool) {
		var chunk []E
		for value := range values {
			if len(chunk) == n {
				if !yield(chunk) {
					return
				}
				chunk = chunk[:0]
			}
			chunk = append(chunk, value)
		}
		if len(chunk) > 0 {
			yield(chunk)
		}
	}
}

// deletions reads what resources were before, and what they are now.
type deletions struct {
	before, now reader
	yield       func(source.Deletion) error
}

func (d *deletions) read(ctx context.Context, batch []former) error {
	slices.SortFunc(batch, func(x, y former) int { return cmp.Compare(x.place, y.place) })
	entries := make([]entry, len(batch))
	for i, f := range batch {
		entries[i] = f.entry
	}
	i := -1 // the reader keeps the order
	return d.before.lines(ctx, entries, func(e entry, body []byte) error {
		i++
		f, file := batch[i], d.before.source.files[batch[i].now.file()]
		deletion := source.Deletion{Held: f.held(), At: file.modified}
		if f.unknown() {
			ref, deletes := lines.Deletion(body)
			if !deletes { // the indexed line was one
				return file.changed()
			}
			deletion.ID = ref.ID
			return d.yield(deletion)
		}
		facts, _, err := d.before.scan(e, body)
		if err != nil {
			return err
		}
		deletion.ID, deletion.Before = facts.ID, d.before.patients(e, facts)
		if !f.held() {
			return d.yield(deletion)
		}
		return d.now.read(ctx, []entry{f.now}, func(e entry, facts fhir.Facts, _ []byte) error {
			deletion.Now = d.now.patients(e, facts)
			return d.yield(deletion)
		})
	})
}
