package pipeline

import (
	"maps"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// numbers are the numbers of an organized unit. The zero value is ready to use.
type numbers struct {
	types map[string]*export.TypeNumbers
	left  export.Tally
}

func (n *numbers) of(typ string) *export.TypeNumbers {
	if n.types == nil {
		n.types = map[string]*export.TypeNumbers{}
	}
	if n.types[typ] == nil {
		n.types[typ] = &export.TypeNumbers{Type: typ}
	}
	return n.types[typ]
}

func (n *numbers) withhold(typ string, why export.Reason) {
	n.of(typ).Found++
	n.of(typ).Withheld++
	n.left.Add(typ, why, 1)
}

// pass counts a resource of so many blocks that passed the chain, or did not.
func (n *numbers) pass(typ string, blocks int64, written bool) {
	n.of(typ).Found += blocks
	if written {
		n.of(typ).Written += blocks
	} else {
		n.of(typ).Filtered += blocks
	}
}

func (n *numbers) add(more *numbers) {
	for typ, m := range more.types {
		t := n.of(typ)
		t.Found += m.Found
		t.Written += m.Written
		t.Filtered += m.Filtered
		t.Withheld += m.Withheld
	}
	n.left.AddAll(more.left.List())
}

// addTo sets the numbers of the unit's result.
func (n *numbers) addTo(result *export.Result) {
	for _, typ := range slices.Sorted(maps.Keys(n.types)) {
		t := *n.types[typ]
		result.Found += t.Found
		result.Filtered += t.Filtered
		result.Withheld += t.Withheld
		result.Types = append(result.Types, t)
	}
	result.LeftOut = n.left.List()
}
