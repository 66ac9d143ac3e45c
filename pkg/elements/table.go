package elements

import (
	_ "embed"
	"slices"
	"strings"
	"sync"
)

// table has a line of tab-separated fields for each root element of R4: resource type, element, minimum, maximum, 1 for a
// modifier, and the data types of a choice.
//
//go:embed elements.tsv
var table string

// element is a root element of a type.
type element struct {
	name   string   // the base name of a choice: value
	keys   []string // in JSON: name, or for a choice valueQuantity, valueString and so on
	always bool     // it is never left out
}

// byType has the root elements by resource type.
var byType = sync.OnceValue(func() map[string][]element {
	types := map[string][]element{}
	for line := range strings.Lines(table) {
		field := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		typ, least, modifier := field[0], field[2], field[4]
		name, choice := strings.CutSuffix(field[1], "[x]")
		e := element{name: name, always: least != "0" || modifier == "1" || name == "id" || name == "meta"}
		if choice {
			for kind := range strings.SplitSeq(field[5], ",") {
				e.keys = append(e.keys, name+strings.ToUpper(kind[:1])+kind[1:])
			}
		} else {
			e.keys = []string{name}
		}
		if types[typ] == nil {
			types[typ] = []element{{name: "resourceType", keys: []string{"resourceType"}, always: true}}
		}
		types[typ] = append(types[typ], e)
	}
	return types
})

// names has the names of the elements of all types.
var names = sync.OnceValue(func() map[string]bool {
	all := map[string]bool{}
	for _, elements := range byType() {
		for _, e := range elements {
			all[e.name] = true
		}
	}
	return all
})

func elementsOf(typ string) []element { return byType()[typ] }

func anyHas(name string) bool { return names()[name] }

func has(typ, name string) bool {
	return slices.ContainsFunc(elementsOf(typ), func(e element) bool { return e.name == name })
}
