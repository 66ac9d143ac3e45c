package elements

import (
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Selection is a validated `_elements`. The zero Selection selects nothing: every line stays whole.
type Selection struct {
	entries []string // sorted, without duplicates: "id", "Patient.name"
}

// Parse reads the values of `_elements`, each a comma list (P-19). An entry is a root element, of all types or, with a
// prefix, of one type. Blanks around an entry do not count, and an empty one is refused, as in `_type` (P-18). A choice of
// types has its base name: value, not valueQuantity. Errors are sentences for the client that name the parameter and never
// repeat a value; a type in them is one of R4 (P-20).
func Parse(values []string) (Selection, error) {
	var s Selection
	if len(values) == 0 {
		return s, nil
	}
	for entry := range strings.SplitSeq(strings.Join(values, ","), ",") {
		entry = strings.TrimSpace(entry)
		if err := check(entry); err != nil {
			return Selection{}, err
		}
		s.entries = append(s.entries, entry)
	}
	slices.Sort(s.entries)
	s.entries = slices.Compact(s.entries)
	return s, nil
}

// refusal is an error that is a sentence for the client.
type refusal string

func (r refusal) Error() string { return string(r) }

func check(entry string) error {
	const choice = " A choice of types has its base name: value, not valueQuantity."
	typ, name, prefixed := strings.Cut(entry, ".")
	switch {
	case entry == "":
		return refusal("The parameter _elements has an empty entry: no value, or a comma too many.")
	case !prefixed && anyHas(entry):
		return nil
	case !prefixed:
		return refusal("The parameter _elements has an entry that is no root element of any type that can be reduced." + choice)
	case strings.Contains(name, "."), anyHas(typ):
		return refusal("The parameter _elements has a nested element. Only root elements are possible, such as Patient.name.")
	case !fhir.IsType(typ):
		return refusal("The parameter _elements has an entry whose type is not a FHIR R4 resource type.")
	case elementsOf(typ) == nil:
		return refusal("The parameter _elements has an entry of the type " + typ + ", whose resources are only exported whole.")
	case !has(typ, name):
		return refusal("The parameter _elements has an entry that is no root element of " + typ + "." + choice)
	}
	return nil
}

// Entries returns the entries, sorted and without duplicates. Parse accepts them again.
func (s Selection) Entries() []string { return slices.Clone(s.entries) }

// For returns the projection of the lines of a type, or nil if they stay whole: no entry names the type or has no prefix
// (P-21), or its elements are not known. It builds a table, so a caller keeps the result for its lines.
func (s Selection) For(typ string) *Projection {
	all := elementsOf(typ)
	var names []string
	for _, entry := range s.entries {
		if prefix, name, prefixed := strings.Cut(entry, "."); !prefixed {
			names = append(names, entry)
		} else if prefix == typ {
			names = append(names, name)
		}
	}
	if all == nil || names == nil {
		return nil
	}
	p := &Projection{keep: map[string]bool{}}
	for _, e := range all {
		if !e.always && !slices.Contains(names, e.name) {
			continue
		}
		for _, key := range e.keys {
			p.keep[key], p.keep["_"+key] = true, true // the second has id and extensions of a primitive value
		}
	}
	return p
}
