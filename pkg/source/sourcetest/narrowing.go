package sourcetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// narrowed are the lines of the test of narrowing, a query for each bound, and how many lines it keeps.
var narrowed = struct {
	lines   []string
	queries map[string]int
}{
	[]string{
		resource("Patient", "a", `"gender":"female","birthDate":"1970-05-01"`),
		resource("Patient", "b", `"gender":"male"`), resource("Patient", "c"), resource("Patient", "d"),
		resource("Observation", "new", ref("subject", "Patient/a"), `"effectiveDateTime":"2024-06-01T23:30:00-05:00"`,
			`"code":{"coding":[{"system":"http://s","code":"rare"}]}`, `"meta":{"lastUpdated":"2024-06-02T00:00:00Z"}`),
		resource("Observation", "old", ref("subject", "Patient/a"), `"effectivePeriod":{"end":"2001-02"}`,
			`"code":{"coding":[{"system":"http://t","code":"rare"}]}`, `"meta":{"lastUpdated":"2024-06-02T00:00:00Z"}`),
		resource("Observation", "other", ref("subject", "Patient/b"), `"effectiveInstant":"2024-06-02T00:00:00Z"`,
			`"code":{"coding":[{"code":"frequent"},{"code":"frequent too"}]}`),
		resource("Observation", "undated", ref("subject", "Patient/c"), `"code":{"coding":[{"code":"frequent"}]}`),
		resource("Observation", "of-several", ref("subject", "Patient/b"),
			`"contained":[`+resource("Condition", "x", ref("subject", "Patient/d"))+`]`,
			`"code":{"coding":[{"code":"frequent"}]}`),
		resource("Observation", "nobody", `"code":{"coding":[{"code":"frequent"}]}`),
		resource("Provenance", "p", targets("Observation/new"), `"recorded":"2024-06-03T00:00:00Z"`),
		resource("Appointment", "two", `"participant":[{"actor":{"reference":"Patient/b"}},{"actor":{"reference":"Patient/c"}}]`,
			`"status":"booked","start":"2020-01-01T00:00:00Z"`),
		resource("Appointment", "one", `"participant":[{"actor":{"reference":"Patient/b"}}]`, `"status":"arrived"`),
		resource("Practitioner", "x", `"gender":"female"`), resource("Practitioner", "y"),
	},
	map[string]int{
		"Observation?code=rare":                              2,
		"Observation?code=http://s|rare":                     1,
		"Observation?code=rare,none":                         2,
		"Observation?code=frequent&code=frequent%20too":      1,
		"Observation?date=ge2024-06-02":                      2,
		"Observation?date=2024-06":                           2,
		"Observation?date=lt1990":                            1,
		"Observation?date=lt1990 Observation?code=rare":      2,
		"Observation?date=ge2024&code=none":                  0,
		"Observation?date:missing=true":                      3,
		"Patient?gender=female&birthdate=lt1971":             1,
		"Patient?deceased=true":                              0,
		"Provenance?recorded=2024-06-03":                     1,
		"Provenance?recorded=ge2025":                         0,
		"Appointment?status=booked":                          1,
		"Appointment?date=ge2021":                            0,
		"Practitioner?gender=female":                         1,
		"Practitioner?gender=male Practitioner?gender=other": 0,
	},
}

// narrowing: a driver that leaves out what a filter drops leaves out nothing else, and counts it.
func narrowing(t *testing.T, load Load) {
	src := load(t, lines(narrowed.lines...))
	now := time.Now()
	since := source.Window{Since: time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)}
	for text, kept := range narrowed.queries {
		typ, filter := compile(t, text)
		everything := func(n source.Narrowing, w source.Window) (c *collector) {
			c = collect(t)
			must(t, src.Everything(t.Context(), source.EverythingQuery{Type: typ, AsOf: now, Narrowing: n, Window: w}, c.take))
			return c
		}
		if got := compareNarrowed(t, text, filter, func(n source.Narrowing) *collector {
			return everything(n, source.Window{})
		}); got != kept {
			t.Errorf("%s keeps %d, want %d: the test is wrong", text, got, kept)
		}
		compareNarrowed(t, text+" in a window", filter, func(n source.Narrowing) *collector { return everything(n, since) })
		if typ == "Practitioner" {
			continue
		}
		for _, patients := range [][]string{{"a", "b", "c", "d"}, {"a"}, {"a", "c"}, {"b", "d"}, {"c"}} {
			for name, window := range map[string]source.Window{"": {}, " in a window": since} {
				compareNarrowed(t, fmt.Sprint(text, " of ", patients, name), filter, func(n source.Narrowing) *collector {
					c := collect(t)
					q := source.Query{Type: typ, Patients: patients, AsOf: now, Window: window, Narrowing: n}
					must(t, src.ForPatients(t.Context(), q, c.take))
					return c
				})
			}
		}
	}
}

// compile returns the filter of the queries, which are of one type.
func compile(t *testing.T, text string) (typ string, filter *typefilter.Filter) {
	t.Helper()
	var queries []typefilter.Query
	for query := range strings.FieldsSeq(text) {
		q, err := typefilter.Parse(query)
		must(t, err)
		queries = append(queries, q)
	}
	typ = queries[0].Type()
	return typ, typefilter.Compile(typ, queries, nil)
}

// compareNarrowed compares a narrowed read with a whole one, and returns how many resources the filter keeps.
func compareNarrowed(
	t *testing.T, name string, filter *typefilter.Filter, read func(source.Narrowing) *collector,
) (kept int) {
	t.Helper()
	whole := read(source.Narrowing{})
	var leftOut int64
	got := read(source.Narrowing{Bound: filter.Bound(), LeftOut: func(n int64) { leftOut += n }})
	if int(leftOut)+len(got.got) != len(whole.got) {
		t.Errorf("%s: %d and %d left out, of %d", name, len(got.got), leftOut, len(whole.got))
	}
	for of := range got.bodies {
		if _, there := whole.bodies[of]; !there {
			t.Errorf("%s: %s is only in the narrowed read", name, of)
		}
	}
	for of, body := range whole.bodies {
		matches, err := filter.Matches([]byte(body))
		must(t, err)
		if _, there := got.bodies[of]; !there && (matches || len(whole.got[of]) > 1) {
			t.Errorf("%s: %s is left out", name, of)
		}
		if matches {
			kept++
		}
	}
	return kept
}
