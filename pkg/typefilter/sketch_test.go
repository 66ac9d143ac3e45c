package typefilter_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// meets reports whether a filter with the bound may keep a line with the sketch.
func meets(bound typefilter.Bound, s typefilter.Sketch) bool {
	return bound == nil || slices.ContainsFunc(bound, func(a typefilter.Alternative) bool {
		return s.To >= a.From && s.From <= a.To && !slices.ContainsFunc(a.Codes, func(either []uint64) bool {
			return !slices.ContainsFunc(either, func(mask uint64) bool { return s.Codes&mask == mask })
		})
	})
}

// sketch returns the sketch of a resource with the members.
func sketch(typ, members string) typefilter.Sketch {
	return typefilter.NewSketcher(typ).Sketch([]byte(`{"resourceType":"` + typ + `","id":"x"` + members + `}`))
}

func bound(t *testing.T, queries string) typefilter.Bound {
	t.Helper()
	var all []typefilter.Query
	for _, text := range split(queries) {
		q, err := typefilter.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
	}
	return typefilter.Compile(all[0].Type(), all, fhir.Bases{ownBase}).Bound()
}

// TestSketchesLeaveOut has lines that bounds leave out. TestAgainstTheOracle has those that they must not.
func TestSketchesLeaveOut(t *testing.T) {
	for _, c := range []struct{ query, without, with string }{
		{"Observation?date=ge2024", `,"effectiveDateTime":"2023-12-31"`, `,"effectiveDateTime":"2024"`},
		{"Observation?date=lt2024", `,"effectiveDateTime":"2024-01-01"`, `,"effectivePeriod":{"end":"2030"}`},
		{"Observation?date=2024-02", `,"effectiveInstant":"2024-03-01T00:00:00Z"`, `,"effectiveInstant":"2024-03-01T00:00:00+14:00"`},
		{"Observation?date=2024", `,"valueQuantity":{"value":1}`, `,"valueDateTime":"2024-02"`},
		{"Observation?date=gt2024", `,"effectiveDateTime":"2024-12-31T23:59:59Z"`, `,"effectiveTiming":{"event":["2000","2030"]}`},
		{"Observation?date=eb1960", `,"effectiveDateTime":"1960"`, `,"effectiveDateTime":"1959"`},
		{"Observation?code=a&date=2024", `,"code":{"coding":[{"code":"a"}]},"effectiveDateTime":"2023"`,
			`,"code":{"coding":[{"code":"a"}]},"effectiveDateTime":"2024"`},
		{"Observation?code=s|a", `,"code":{"coding":[{"code":"A"}]}`, `,"component":[{"code":{"coding":[{"code":"b"},{"code":"a"}]}}]`},
		{"Observation?code=a&code=b", `,"code":{"coding":[{"code":"a"}]}`, `,"code":{"coding":[{"code":"a"},{"code":"b"}]}`},
		{"Observation?code=a Observation?status=final", `,"status":"amended"`, `,"status":"final"`},
		{"Patient?active=false", `,"active":true`, `,"active":false`},
		{"Patient?phone=1", `,"telecom":[{"value":"2"}]`, `,"telecom":[{"system":"phone","value":"1"}]`},
		{"Observation?_tag=a", `,"meta":{"security":[{"code":"b"}]}`, `,"meta":{"tag":[{"code":"a"}]}`},
	} {
		typ, _, _ := strings.Cut(c.query, "?")
		if b := bound(t, c.query); meets(b, sketch(typ, c.without)) || !meets(b, sketch(typ, c.with)) {
			t.Errorf("%s: %+v with %+v and %+v", c.query, b, sketch(typ, c.without), sketch(typ, c.with))
		}
	}
}

func TestQueriesWithoutABound(t *testing.T) {
	many := "Observation?code=" + strings.Repeat("a,", 32) + "a"
	for _, queries := range []string{
		"Observation?code=s|", "Observation?code=a,s|", "Observation?code:missing=false", "Observation?date:missing=true",
		"Observation?date=ne2024", "Observation?date=2024,ne2023", "Observation?_id=x", "Observation?identifier=x",
		"Observation?_lastUpdated=ge2024", "Patient?deceased=true", "Observation?subject=Patient/1", "Observation?subject:identifier=x",
		"Observation?value-quantity=1", "Observation?value-string=a", "Observation?_profile=http://p",
		"Observation?code=a Observation?subject=Patient/1", many,
		strings.Repeat("Observation?code=a,b,c ", 11),
	} {
		if b := bound(t, queries); b != nil {
			t.Errorf("%s: %+v", queries, b)
		}
	}
	if b := bound(t, many+"&date=2024"); len(b) != 1 || b[0].Codes != nil || b[0].From == math.MinInt32 {
		t.Errorf("too many codes with a date: %+v", b)
	}
}

// A line that Matches may refuse meets every bound.
func TestSketchesOfUnreadableLines(t *testing.T) {
	b := bound(t, "Observation?date=2024&code=a")
	for _, members := range []string{
		`,"status":"final","status":"final"`, `,"Status":"final"`, `,"code":{"coding":[{"code":"b","code":"b"}]}`, `,"status":"`,
		`,"component":[{"code":{},"code":{}}]`, `,"effectivePeriod":{"start":"2000","start":"2000"}`, "\xff",
		`,"effectiveTiming":{"repeat":{"boundsPeriod":{"end":"2000","END":"2001"}}}`,
	} {
		if s := sketch("Observation", members); !meets(b, s) {
			t.Errorf("%s: %+v", members, s)
		}
	}
	s := typefilter.NewSketcher("Observation")
	s.Sketch([]byte(`{"resourceType":"Observation","code":{"text":"a"},"effectiveDateTime":"2024"}`))
	if meets(b, s.Sketch([]byte(`{"resourceType":"Observation"}`))) {
		t.Error("a sketch has what the line before had")
	}
}

// TestSketchRulesHaveTheirNumber fails when sketches or bounds change and their version does not. Then increment SketchRules,
// so that stored sketches do not count, and update the fingerprint here.
func TestSketchRulesHaveTheirNumber(t *testing.T) {
	table, err := os.ReadFile("search-parameters-r4.tsv")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Builder{}
	text.Write(table)
	r, o := newRandom(1), newOracle(t)
	for _, typ := range []string{"Observation", "Patient", "Encounter", "MedicationRequest", "Appointment", "Claim"} {
		for range 50 {
			resource := r.resource(typ, o[typ])
			line, err := json.Marshal(resource)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&text, typefilter.NewSketcher(typ).Sketch(line))
			if q, err := typefilter.Parse(r.query(typ, o[typ], decode(t, line).decoded)); err == nil {
				fmt.Fprintln(&text, typefilter.Compile(typ, []typefilter.Query{q}, nil).Bound())
			}
		}
	}
	const number, fingerprint = 1, 0x931945fd914d567d
	if got := xxh3.HashString(text.String()); typefilter.SketchRules != number || got != fingerprint {
		t.Errorf("rules %d with the fingerprint %#x, want %d with %#x", typefilter.SketchRules, got, number, uint64(fingerprint))
	}
}
