package ndjson

import (
	"context"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// resolve resolves the references that take read has noted, and finds the patients of the lines that have them. From here
// on a reader rewrites these lines.
func (b *builder) resolve(ctx context.Context, s *Source) error {
	for id := range b.refs.URNs {
		for typ, l := range b.lists {
			if l.find(b.hash(id)) != nil {
				b.refs.OfferID(fhir.Ref{Type: typ, ID: id})
			}
		}
	}
	types, _ := b.refs.Wants()
	for _, typ := range types {
		err := b.each(ctx, s, typ, func(*found) bool { return true }, func(_ *found, facts fhir.Facts, body []byte) {
			b.refs.Offer(fhir.Ref{Type: typ, ID: facts.ID}, body)
		})
		if err != nil {
			return err
		}
	}
	s.resolved = b.refs
	for typ := range b.lists {
		err := b.each(ctx, s, typ, func(f *found) bool { return f.resolvable() }, func(f *found, facts fhir.Facts, body []byte) {
			if typ != "Provenance" { // resolveProvenance finds its patients
				b.setPatients(&f.entry, b.numbersOf(source.Named(nil, facts)))
			}
			f.why = whyHomeless(facts)
			b.refs.Resolve(nil, body, facts, func(missed string, form fhir.Form) {
				reason := export.UnresolvedReference
				if form == fhir.Foreign {
					reason = export.ForeignReference
				}
				// Others would not be followed, nor those of lines that only the system level exports, with all that is held.
				if fhir.IsExportable(typ) && (missed == "" || fhir.IsReferenced(missed)) {
					b.leaveOut(missed, reason, location{f.file(), 0, b.files[f.file()].name})
				}
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each reads the resources of a type that are wanted.
func (b *builder) each(
	ctx context.Context, s *Source, typ string, wanted func(*found) bool, read func(*found, fhir.Facts, []byte),
) error {
	var batch []entry
	l := b.lists[typ]
	if l == nil {
		return nil
	}
	r := reader{source: s}
	flush := func() error {
		err := r.read(ctx, batch, func(_ entry, facts fhir.Facts, body []byte) error {
			read(l.find(b.hash(facts.ID)), facts, body)
			return nil
		})
		batch = batch[:0]
		return err
	}
	for i := range l.n {
		if f := l.at(i); wanted(f) {
			batch = append(batch, f.entry)
		}
		if len(batch) == s.batchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
