package typefilter

import (
	"math"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// SketchRules is the version of what a Sketch holds (1 to 255). Increment it when the same line or the same query could get
// another one: a sketch made under other rules tells nothing about a line.
const SketchRules = 1

// Sketch is a summary of a line by which a store may leave it out before Matches reads it. It is lossy: it may meet the
// Bound of a filter that the line does not match, never the reverse.
type Sketch struct {
	From, To int32  // the days since 1970 (UTC) of the earliest and of the latest date; From is after To without a date
	Codes    uint64 // the bits of all codes (codeBits)
}

// widest is the sketch of a line that may match anything.
var widest = Sketch{From: math.MinInt32, To: math.MaxInt32, Codes: math.MaxUint64}

// empty is the sketch of a line without dates and codes.
var empty = Sketch{From: math.MaxInt32, To: math.MinInt32}

// sketched reports whether sketches hold the values of a parameter. They do not hold those that differ in each line, which
// would fill the bits, nor lastUpdated, which would widen the days of most lines, nor deceased, which every Patient has.
func sketched(p Parameter) bool {
	switch p.Name {
	case "_id", "identifier", "_lastUpdated", "deceased":
		return false
	}
	return p.Type == "token" || p.Type == "date"
}

// Sketcher makes the sketches of the lines of one type. It reads the values that Matches reads, by the same paths and
// functions, but each object once. It is not safe for concurrent use.
type Sketcher struct {
	root   step
	sketch Sketch
}

// step is what sketches hold of the values at a place in the lines.
type step struct {
	codes, days bool     // the value is one of a token, of a date parameter
	names       []string // elements below
	below       []*step  // of each name
	found       [][]byte // of each name
}

// NewSketcher returns the sketcher of a type.
func NewSketcher(typ string) *Sketcher {
	s := Sketcher{root: step{names: []string{"resourceType"}, below: []*step{{}}, found: make([][]byte, 1)}}
	for days, paths := range sketchedPaths(typ) {
		for _, path := range paths { // whatever its system is
			s.root.add(append([][]string{path.root}, path.steps...), days == 1)
		}
	}
	return &s
}

// compiled has the results of sketchedPaths: to compile them takes as long as to sketch a hundred lines.
var compiled sync.Map

// sketchedPaths returns the paths of the tokens and of the dates that sketches of the type hold.
func sketchedPaths(typ string) (all [2][]path) {
	if known, ok := compiled.Load(typ); ok {
		return known.([2][]path)
	}
	for _, p := range Parameters(typ) {
		if !sketched(p) {
			continue
		}
		d, _ := define(typ, p.Name)
		if paths, err := d.compile(); err == nil { // else Parse refuses it
			kind := slices.Index([]string{"token", "date"}, p.Type)
			all[kind] = append(all[kind], paths...)
		}
	}
	compiled.Store(typ, all)
	return all
}

// add adds what is at the end of a path.
func (s *step) add(path [][]string, days bool) {
	if len(path) == 0 {
		s.codes, s.days = s.codes || !days, s.days || days
		return
	}
	for _, name := range path[0] {
		i := slices.Index(s.names, name)
		if i < 0 {
			i = len(s.names)
			s.names, s.below, s.found = append(s.names, name), append(s.below, &step{}), append(s.found, nil)
		}
		s.below[i].add(path[1:], days)
	}
}

// Sketch returns the sketch of a line. It is the widest if a value that a sketch holds cannot be read. Matches also refuses
// lines for other values: such a line may have any sketch.
func (s *Sketcher) Sketch(line []byte) Sketch {
	s.sketch = empty
	if !utf8.Valid(line) || fhir.OnlyFields(line, s.root.names, s.root.found) != nil || s.below(&s.root) != nil {
		return widest
	}
	return s.sketch
}

// below adds what is below the found elements.
func (s *Sketcher) below(at *step) error {
	for i, value := range at.found {
		if value == nil {
			continue
		}
		next := at.below[i]
		_, err := walk(value, nil, func(value []byte) (bool, error) { return false, s.add(value, next) })
		if err != nil {
			return err
		}
	}
	return nil
}

// add adds a value and what is below it.
func (s *Sketcher) add(value []byte, at *step) error {
	if at.codes {
		_, err := eachToken(value, func(_, code []byte) bool {
			s.sketch.Codes |= codeBits(code)
			return false
		})
		if err != nil {
			return err
		}
	}
	if at.days {
		found, ok, err := readInterval(value)
		if err != nil {
			return err
		}
		if ok { // a Period may end before it starts
			from, to := day(found.from), lastDay(found.to)
			s.sketch.From, s.sketch.To = min(s.sketch.From, from, to), max(s.sketch.To, from, to)
		}
	}
	if len(at.names) == 0 || value[0] != '{' {
		return nil
	}
	if _, err := fhir.Fields(value, at.names, at.found); err != nil {
		return err
	}
	return s.below(at)
}

// codeBits returns the bits of a code in Sketch.Codes: up to three of 64.
func codeBits(code []byte) uint64 {
	hash := xxh3.Hash(code)
	return 1<<(hash&63) | 1<<(hash>>6&63) | 1<<(hash>>12&63)
}

// day returns the number of the day in UTC. The limits of this package fit.
func day(at time.Time) int32 {
	const seconds = 24 * 60 * 60
	return int32((at.Unix()-past.Unix())/seconds + past.Unix()/seconds) //nolint:gosec // see above
}

// lastDay returns the day of the last instant before the end of an interval.
func lastDay(end time.Time) int32 { return day(end.Add(-1)) }

// Bound is what the sketch of each line has that a filter keeps: one of the alternatives. Without any there is no bound.
type Bound []Alternative

// Alternative is the bound of one query.
type Alternative struct {
	From, To int32      // Sketch.To is at least From, and Sketch.From is at most To
	Codes    [][]uint64 // for each condition: Sketch.Codes has all bits of one of the masks
}

// mostMasks bounds the masks of a Bound: comparing more costs a store more than it saves.
const mostMasks = 32

// Bound returns the bound of the filter, nil if a line of any sketch may match.
func (f *Filter) Bound() Bound {
	var all Bound
	masks := 0
	for _, q := range f.queries {
		a := Alternative{From: math.MinInt32, To: math.MaxInt32}
		for i := range q {
			a.add(&q[i].condition)
		}
		for _, either := range a.Codes {
			masks += len(either)
		}
		if a.From == math.MinInt32 && a.To == math.MaxInt32 && len(a.Codes) == 0 || masks > mostMasks {
			return nil
		}
		all = append(all, a)
	}
	return all
}

// add narrows the alternative by a condition.
func (a *Alternative) add(c *condition) {
	switch all := c.test.(type) {
	case tokens:
		if !sketched(Parameter{Name: c.name, Type: "token"}) {
			return
		}
		var either []uint64
		for i := range all {
			if all[i].anyCode {
				return
			}
			either = append(either, codeBits([]byte(all[i].code)))
		}
		if len(either) <= mostMasks {
			a.Codes = append(a.Codes, either)
		}
	case dates:
		if !sketched(Parameter{Name: c.name, Type: "date"}) {
			return
		}
		from, to := int32(math.MaxInt32), int32(math.MinInt32)
		for i := range all {
			first, last := all[i].days()
			from, to = min(from, first), max(to, last)
		}
		a.From, a.To = max(a.From, from), min(a.To, to)
	}
}

// days returns the day that the latest date of a matching line has at least, and the one that the earliest has at most:
// those of the instants that holds compares.
func (d *date) days() (from, to int32) {
	from, to = math.MinInt32, math.MaxInt32
	switch d.prefix {
	case "eq", "ap":
		from, to = day(d.from), lastDay(d.to)
	case "ge":
		from = day(d.from)
	case "gt", "sa":
		from = day(d.to)
	case "le":
		to = lastDay(d.to)
	case "lt", "eb":
		to = lastDay(d.from)
	}
	return from, to
}
