package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// exportAll exports everything in the range of patients of the unit's slice, for an owner who may see every patient. What
// is about no patient is in the first range.
func (w *Worker) exportAll(
	ctx context.Context, job export.Job, unit export.Unit, cohort *spillset.List, sink *sink,
) error {
	query := source.EverythingQuery{Type: unit.Type, AsOf: job.Snapshot, Window: windowOf(job, unit)}
	var err error
	if unit.Slice.From > 0 {
		if query.From, err = cohort.First(unit.Slice.From); err != nil {
			return err
		}
	}
	if fhir.InCompartment(unit.Type) && unit.Slice.To < cohort.Chunks() {
		if query.To, err = cohort.First(unit.Slice.To); err != nil {
			return err
		}
	}
	groups, err := w.grantedGroups(ctx, job, unit)
	if err != nil {
		return err
	}
	if groups == nil { // else the owner must not learn the number of the groups that are not granted
		if query.Narrowing, err = w.narrowing(job, unit, sink); err != nil {
			return err
		}
	}
	var g lineGuard
	err = w.Source.Everything(ctx, query, func(r source.Resource) error {
		verdict, err := g.check(unit.Type, r)
		if err != nil {
			return err
		}
		if groups != nil && !groups.Has(r.ID) {
			return sink.hide()
		}
		return sink.take(ctx, r, verdict, g.why)
	})
	if err := streamError(ctx, err); err != nil || !job.Request.Incremental() {
		return err
	}
	return w.deleted(ctx, job, source.DeletedQuery{Type: unit.Type, From: query.From, To: query.To}, unit,
		func(d source.Deletion) error {
			if d.Held || groups != nil && !groups.Has(d.ID) {
				return nil
			}
			return sink.gone.add(unit.Type, d.ID)
		})
}

// exportNobody exports what is about no patient, for an owner who may not see every patient.
func (w *Worker) exportNobody(
	ctx context.Context, job export.Job, unit export.Unit, cohort *spillset.List, sink *sink,
) error {
	g := nobodyGuard{cohort: cohort}
	query := source.EverythingQuery{Type: unit.Type, To: source.NoPatient, AsOf: job.Snapshot, Window: windowOf(job, unit)}
	err := w.Source.Everything(ctx, query, func(r source.Resource) error {
		verdict, err := g.check(ctx, unit.Type, r)
		if err != nil {
			return err
		}
		if verdict == withheld {
			return sink.hide() // their number is that of other patients' data
		}
		return sink.take(ctx, r, verdict, "")
	})
	if err := streamError(ctx, err); err != nil || !job.Request.Incremental() {
		return err
	}
	// Nobody can tell whether the owner could have had what was deleted.
	return w.deleted(ctx, job, source.DeletedQuery{Type: unit.Type, To: source.NoPatient}, unit,
		func(d source.Deletion) error {
			if d.Held {
				return nil
			}
			return sink.hide()
		})
}

// grantedGroups returns the groups of the grant for a unit of Group, else nil.
func (w *Worker) grantedGroups(ctx context.Context, job export.Job, unit export.Unit) (*directory.Selection, error) {
	if unit.Type != "Group" {
		return nil, nil
	}
	grant, err := w.Access.Grant(ctx, job.Owner)
	return &grant.Groups, err
}

// hide notes that something was left out because of the grant, without its number.
func (s *sink) hide() error {
	s.left.AddAll([]export.LeftOut{{Type: s.unit.Type, Reason: export.NotGranted}})
	return nil
}

// lineGuard checks that a line is the resource that the source returned it as. It does not look at whom it is about.
type lineGuard struct {
	scanner fhir.Scanner
	why     export.Reason // why the current resource is withheld, else ""
}

func (g *lineGuard) check(typ string, r source.Resource) (verdict, error) {
	g.why = ""
	if r.Type != typ {
		return 0, errOtherResource
	}
	if r.Attested() {
		if r.Attest() != r.Attestation {
			return 0, errNotAsLoaded
		}
		return admitted, nil
	}
	_, err := g.scan(typ, r)
	switch {
	case err != nil:
		return 0, err
	case g.why != "":
		return withheld, nil
	}
	return admitted, nil
}

// scan parses the line. One that was loaded under other rules is withheld if the current ones refuse it.
func (g *lineGuard) scan(typ string, r source.Resource) (fhir.Facts, error) {
	g.why = ""
	if r.Type != typ {
		return fhir.Facts{}, errOtherResource
	}
	facts, err := scanAs(&g.scanner, typ, r)
	switch {
	case err != nil && outdated(r):
		g.why = export.Malformed
	case err != nil:
		return facts, err
	case r.Attested() && r.Attest() != r.Attestation:
		return facts, errNotAsLoaded
	}
	return facts, nil
}

// nobodyGuard admits resources that are about no patient and name none outside the cohort, anywhere in the line. It reads
// every line itself. Types of which R4 allows more have no unit (fhir.MayNamePatients).
type nobodyGuard struct {
	lineGuard

	cohort *spillset.List
}

func (g *nobodyGuard) check(ctx context.Context, typ string, r source.Resource) (verdict, error) {
	facts, err := g.scan(typ, r)
	switch {
	case err != nil:
		return 0, err
	case g.why != "" || facts.Unresolved+facts.Invalid+facts.Foreign > 0:
		return withheld, nil
	}
	for _, subject := range facts.Subjects {
		switch {
		case subject.Type == "Patient":
			return 0, refuse("a resource about a patient that was not requested")
		case typ == "Provenance" && fhir.InCompartment(subject.Type): // its target may be about a patient
			return withheld, nil
		}
	}
	mayName, err := mayNamePatients(typ, r.Body)
	if err != nil || mayName {
		return withheld, nil //nolint:nilerr // a line that two parsers read differently is withheld
	}
	named := admitted
	fhir.EachReference(r.Body, func(text []byte) bool {
		typ, id, form := fhir.Classify(text)
		of := string(typ)
		// What is about a patient, or may be, leads to one.
		harmless := of != "" && !fhir.InCompartment(of) && !fhir.MayNamePatients(of)
		switch {
		case form == fhir.Contained, harmless && (form == fhir.Local || form == fhir.Foreign || form == fhir.Conditional):
			return true
		case form == fhir.Local && of == "Patient":
			var found bool
			if found, err = g.cohort.Contains(ctx, string(id)); err == nil && found {
				return true
			}
		}
		named = withheld
		return false
	})
	return named, err
}

// mayNamePatients reports whether the line may be about a patient whom no reference names: by a contained resource of the
// patient compartment, by a reference of type Patient that has only an identifier, or, in a type of the compartment, by any
// reference with an identifier.
func mayNamePatients(typ string, line []byte) (bool, error) {
	tokens := json.NewDecoder(bytes.NewReader(line))
	depth, last := 0, ""
	for {
		token, err := tokens.Token()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read a line: %w", err)
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '{' && depth > 1 && last == "identifier" && fhir.InCompartment(typ) {
				return true, nil
			}
			if token == '{' || token == '[' {
				depth++
			} else {
				depth--
			}
			last = ""
		case string:
			if depth > 1 && (last == "resourceType" && fhir.InCompartment(token) || last == "type" && token == "Patient") {
				return true, nil
			}
			last = token
		default:
			last = ""
		}
	}
}
