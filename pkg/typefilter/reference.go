package typefilter

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// references are the values of a reference parameter (R4 3.1.1.4.12).
type references struct {
	values []reference
	bases  fhir.Bases // set by Compile
}

// reference is a local resource, of any type if typ is "", or any other reference by its text.
type reference struct{ typ, id, text string }

var (
	errReference = errors.New("a reference is an id, Type/id, an http or https URL or a urn")
	errVersioned = errors.New("a reference with a version is not supported")
	errModified  = errors.New("with a type as modifier a reference is an id of that type")
)

// parseReferences reads the values. typ is that of the modifier, "" without one.
func parseReferences(values []string, typ string) (test, error) {
	var all references
	for _, value := range unescaped(values) {
		named, id, form := fhir.Classify(value)
		r := reference{text: value}
		switch {
		case strings.Contains(value, "/_history/") && (form == fhir.Local || form == fhir.Foreign):
			return nil, errVersioned
		case fhir.IsID(value):
			r = reference{typ: typ, id: value}
		case form == fhir.Local:
			r = reference{typ: named, id: id}
		case form != fhir.Foreign && !strings.HasPrefix(value, "urn:"):
			return nil, errReference
		}
		if typ != "" && r.typ != typ {
			return nil, errModified
		}
		all.values = append(all.values, r)
	}
	return all, nil
}

// under returns the references for a server with these bases.
func (all references) under(bases fhir.Bases) references {
	all.bases = bases
	all.values = slices.Clone(all.values)
	for i, r := range all.values {
		if ref, ok := bases.Literal(r.text); ok {
			all.values[i] = reference{typ: ref.Type, id: ref.ID}
		}
	}
	return all
}

var referenceNames = []string{"reference", "type"}

// match compares a Reference, or a canonical or other URI. A version of a local reference in a line is not compared.
func (all references) match(value []byte) (bool, error) {
	text := fhir.Text(value)
	if value[0] == '{' {
		var found [1][]byte
		if _, err := fhir.Fields(value, referenceNames[:1], found[:]); err != nil {
			return false, err
		}
		text = fhir.Text(found[0])
	}
	typ, id := local(text, all.bases)
	for i := range all.values {
		r := &all.values[i]
		if r.id != "" && r.id == string(id) && (r.typ == "" || r.typ == string(typ)) ||
			r.id == "" && r.text == string(text) {
			return true, nil
		}
	}
	return false, nil
}

// local returns the type and the id of a local reference, else nothing.
func local(text []byte, bases fhir.Bases) (typ, id []byte) {
	switch typ, id, form := fhir.Classify(text); form {
	case fhir.Local:
		return typ, id
	case fhir.Foreign:
		if ref, ok := bases.Literal(string(text)); ok {
			return []byte(ref.Type), []byte(ref.ID)
		}
	}
	return nil, nil
}

// refersTo reports whether the value is a reference to a resource of the type, by its text or else by Reference.type.
func refersTo(value []byte, typ string) (bool, error) {
	if value[0] != '{' {
		return false, nil
	}
	var found [2][]byte
	if _, err := fhir.Fields(value, referenceNames, found[:]); err != nil {
		return false, err
	}
	named, id, form := fhir.Classify(fhir.Text(found[0]))
	if (form == fhir.Local || form == fhir.Foreign) && len(id) > 0 {
		return string(named) == typ, nil
	}
	declared := bytes.TrimPrefix(fhir.Text(found[1]), []byte("http://hl7.org/fhir/StructureDefinition/"))
	return string(declared) == typ, nil
}

// identified compares the identifier of a Reference as a token.
type identified struct{ identifier test }

var identifierStep = [][]string{{"identifier"}}

func (all identified) match(value []byte) (bool, error) {
	if value[0] != '{' {
		return false, nil
	}
	return walk(value, identifierStep, all.identifier.match)
}
