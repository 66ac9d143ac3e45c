package typefilter

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Filter keeps the lines of one type that match any of its queries. It is safe for concurrent use.
type Filter struct {
	typ     string
	roots   []string // top-level keys that are read; the first is resourceType
	queries [][]bound
}

// bound is a condition whose paths begin at roots of its filter.
type bound struct {
	condition
	roots [][]int // for each path the indexes of its root keys
}

var errUTF8 = errors.New("not valid UTF-8")

// Compile returns the filter of a type: the alternatives among queries that are of it, nil if there are none. Absolute
// references below bases, in lines and queries, are local ones.
func Compile(typ string, queries []Query, bases fhir.Bases) *Filter {
	f := &Filter{typ: typ, roots: []string{"resourceType"}}
	for _, q := range queries {
		if q.typ != typ {
			continue
		}
		var all []bound
		for _, c := range q.conditions {
			all = append(all, f.bind(c, bases))
		}
		f.queries = append(f.queries, all)
	}
	if f.queries == nil {
		return nil
	}
	return f
}

// bind adds the roots of a condition to those of the filter.
func (f *Filter) bind(c condition, bases fhir.Bases) bound {
	b := bound{condition: c}
	if all, ok := c.test.(references); ok {
		b.test = all.under(bases)
	}
	for _, p := range c.paths {
		var indexes []int
		for _, key := range p.root {
			i := slices.Index(f.roots, key)
			if i < 0 {
				i = len(f.roots)
				f.roots = append(f.roots, key)
			}
			indexes = append(indexes, i)
		}
		b.roots = append(b.roots, indexes)
	}
	return b
}

// Matches reports whether the line, without its newline, matches one of the queries. It returns an error for a line that is
// not one JSON object of the type, and for one that parsers could read differently where a query reads it. Errors have no
// content of the line.
func (f *Filter) Matches(line []byte) (bool, error) {
	if !utf8.Valid(line) {
		return false, errUTF8
	}
	var room [32][]byte
	values := room[:]
	if len(f.roots) > len(room) {
		values = make([][]byte, len(f.roots))
	}
	values = values[:len(f.roots)]
	if err := fhir.OnlyFields(line, f.roots, values); err != nil {
		return false, err
	}
	if string(fhir.Text(values[0])) != f.typ {
		return false, fmt.Errorf("not a resource of the type %s", f.typ)
	}
	for _, q := range f.queries {
		all := true
		for i := 0; i < len(q) && all; i++ {
			var err error
			if all, err = q[i].holds(values); err != nil {
				return false, err
			}
		}
		if all {
			return true, nil
		}
	}
	return false, nil
}

// holds reports whether a resource with these top-level values meets the condition.
func (b *bound) holds(values [][]byte) (bool, error) {
	met := false
	for i := range b.paths {
		for _, root := range b.roots[i] {
			if values[root] == nil || met {
				continue
			}
			var err error
			if met, err = walk(values[root], b.paths[i].steps, func(value []byte) (bool, error) {
				return b.meets(&b.paths[i], value)
			}); err != nil {
				return false, err
			}
		}
		if b.paths[i].exists { // the only path: its value is whether something was met
			return b.compareExists(met)
		}
	}
	if b.test == nil {
		return met != b.missing, nil
	}
	return met, nil
}

var truth = map[bool][]byte{true: []byte("true"), false: []byte("false")}

// compareExists compares the value of an expression that always has one.
func (b *bound) compareExists(exists bool) (bool, error) {
	if b.test == nil {
		return !b.missing, nil
	}
	return b.test.match(truth[exists])
}

// meets reports whether a value at the end of a path is one of the parameter and, unless the condition is about missing
// values, matches.
func (b *bound) meets(p *path, value []byte) (bool, error) {
	if p.exists {
		return string(value) != "false", nil
	}
	if p.resolved != "" {
		if ok, err := refersTo(value, p.resolved); !ok || err != nil {
			return false, err
		}
	}
	if p.system != "" {
		var found [1][]byte
		if value[0] != '{' {
			return false, nil
		}
		if _, err := fhir.Fields(value, tokenNames[1:2], found[:]); err != nil || string(fhir.Text(found[0])) != p.system {
			return false, err
		}
	}
	if b.test == nil {
		return true, nil
	}
	return b.test.match(value)
}
