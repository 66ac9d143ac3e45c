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

func (f *Filter) bind(c condition, _ fhir.Bases) bound {
	b := bound{condition: c}
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
	for i, p := range b.paths {
		for _, root := range b.roots[i] {
			if values[root] == nil {
				continue
			}
			if found, err := walk(values[root], p.steps, b.test.match); found || err != nil {
				return found, err
			}
		}
	}
	return false, nil
}
