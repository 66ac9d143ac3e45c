package typefilter

import (
	"math"
	"slices"
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

// Sketcher makes the sketches of the lines of one type. It reads lines by the paths and functions of Matches. It is not
// safe for concurrent use.
type Sketcher struct {
	all    *Filter // one query, whose conditions collect values and match nothing
	values [][]byte
	sketch Sketch
}

// NewSketcher returns the sketcher of a type.
func NewSketcher(typ string) *Sketcher {
	s := &Sketcher{all: &Filter{typ: typ, roots: []string{"resourceType"}}}
	codes, days := condition{test: collector(s.addCodes)}, condition{test: collector(s.addDays)}
	for _, p := range Parameters(typ) {
		if !sketched(p) {
			continue
		}
		d, _ := define(typ, p.Name)
		paths, err := d.compile()
		if err != nil {
			continue // Parse refuses it
		}
		to := &codes
		if p.Type == "date" {
			to = &days
		}
		for _, path := range paths {
			path.system = "" // a path without it has more values
			if !slices.ContainsFunc(to.paths, path.equal) {
				to.paths = append(to.paths, path)
			}
		}
	}
	s.all.queries = [][]bound{{s.all.bind(codes, nil), s.all.bind(days, nil)}}
	s.values = make([][]byte, len(s.all.roots))
	return s
}

// equal reports whether two paths lead to the same values.
func (p path) equal(other path) bool {
	return slices.Equal(p.root, other.root) && slices.EqualFunc(p.steps, other.steps, slices.Equal)
}

// Sketch returns the sketch of a line. One that Matches refuses for any query has the widest.
func (s *Sketcher) Sketch(line []byte) Sketch {
	if !utf8.Valid(line) || fhir.OnlyFields(line, s.all.roots, s.values) != nil {
		return widest
	}
	s.sketch = empty
	for i := range s.all.queries[0] {
		if _, err := s.all.queries[0][i].holds(s.values); err != nil {
			return widest
		}
	}
	return s.sketch
}

// collector is a test that matches no value, so that it is called with all of them.
type collector func(value []byte) error

func (collect collector) match(value []byte) (bool, error) { return false, collect(value) }

func (s *Sketcher) addCodes(value []byte) error {
	_, err := eachToken(value, func(_, code []byte) bool {
		s.sketch.Codes |= codeBits(code)
		return false
	})
	return err
}

func (s *Sketcher) addDays(value []byte) error {
	at, ok, err := readInterval(value)
	if ok {
		// A Period may end before it starts.
		from, to := day(at.from), lastDay(at.to)
		s.sketch.From, s.sketch.To = min(s.sketch.From, from, to), max(s.sketch.To, from, to)
	}
	return err
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

// days returns the day that the latest date of a matching line has at least, and the one that the earliest has at most: those
// of the instants that holds compares.
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
