package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/typefilter"

	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// TestNarrowing: every path leaves out the rows whose sketch does not meet the bound, and counts those of the asked patients.
func TestNarrowing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, `{"resourceType":"Patient","id":"p%02d"}`+"\n", i)
		for year := 2000; year < 2010; year++ {
			fmt.Fprintf(&text, `{"resourceType":"Observation","id":"o%02d-%d","subject":{"reference":"Patient/p%02d"},`+
				`"code":{"coding":[{"code":"c%d"}]},"effectiveDateTime":"%d"}`+"\n", i, year, i, year%2, year)
		}
	}
	s.load(map[string][]byte{"a.ndjson": []byte(text.String()), "p.ndjson": []byte(
		`{"resourceType":"Observation","id":"two","subject":{"reference":"Patient/p01"},"contained":[` +
			`{"resourceType":"Observation","id":"c","subject":{"reference":"Patient/p02"}}]}` +
			"\n" + `{"resourceType":"Provenance","id":"p","target":[{"reference":"Patient/p01"}],"recorded":"2001-01-01T00:00:00Z"}`)})
	asked := []string{"p01", "p02", "p50", "p99"}
	whole := source.Window{Since: time.Unix(0, 0)} // nothing has a date of update
	type numbers struct{ yielded, leftOut int64 }
	read := func(query string, read func(source.Narrowing, func(source.Resource) error) error) (n numbers) {
		q, err := typefilter.Parse(query)
		must(t, err)
		must(t, read(source.Narrowing{
			Bound:   typefilter.Compile(q.Type(), []typefilter.Query{q}, nil).Bound(),
			LeftOut: func(rows int64) { n.leftOut += rows },
		}, func(source.Resource) error { n.yielded++; return nil }))
		return n
	}
	forPatients := func(query string, by postgres.Path) numbers {
		typ, _, _ := strings.Cut(query, "?")
		return read(query, func(n source.Narrowing, yield func(source.Resource) error) error {
			q := source.Query{Type: typ, Patients: asked, AsOf: time.Now(), Narrowing: n}
			if by == postgres.ByChange {
				q.Window = whole
			}
			return s.src.ForPatientsBy(t.Context(), by, q, yield)
		})
	}
	compare := func(what string, got, want numbers) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	everything := func(from, to string, w source.Window) numbers {
		return read("Observation?date=2004&code=c0", func(n source.Narrowing, yield func(source.Resource) error) error {
			q := source.EverythingQuery{Type: "Observation", From: from, To: to, AsOf: time.Now(), Narrowing: n, Window: w}
			return s.src.Everything(t.Context(), q, yield)
		})
	}
	for name, by := range map[string]postgres.Path{"patients": postgres.ByPatient, "range": postgres.ByRange} {
		compare(name+" and a date", forPatients("Observation?date=2004", by), numbers{5, 36})
		compare(name+" and a code", forPatients("Observation?code=c0", by), numbers{21, 20})
		compare(name+" and both", forPatients("Observation?code=c0&date=ge2004", by), numbers{13, 28})
		compare(name+" without a bound", forPatients("Observation?subject=Patient/p01", by), numbers{41, 0})
	}
	compare("everything", everything("", "", source.Window{}), numbers{101, 900})
	compare("a part of everything", everything("p50", "p60", source.Window{}), numbers{10, 90})
	compare("changes", forPatients("Observation?date=2004", postgres.ByChange), numbers{41, 0})
	compare("everything in a window", everything("", "", whole), numbers{1001, 0})

	// A Provenance whose patients change gets a new row.
	s.load(map[string][]byte{"a.ndjson": []byte(`{"resourceType":"Observation","id":"o00-2000","subject":{"reference":"Patient/p50"}}` +
		"\n" + `{"resourceType":"Provenance","id":"q","target":[{"reference":"Observation/o00-2000"}],"recorded":"2001-01-01T00:00:00Z"}`)})
	s.load(map[string][]byte{"a.ndjson": []byte(
		`{"resourceType":"Observation","id":"o00-2000","subject":{"reference":"Patient/p99"},"status":"final"}`)})
	compare("Provenance", forPatients("Provenance?recorded=ge2002", postgres.ByPatient), numbers{0, 2})

	// Rows that were made under other rules, or by a release without sketches, are read.
	const current = "sketch_rules = 769" // 3 and 1
	for _, set := range []string{"sketch_rules = sketch_rules + 1", "sketch_rules = sketch_rules + 255", "sketch_rules = sketch_rules - 256",
		"sketch_rules = NULL", "codes = NULL, dated_from = NULL, dated_to = NULL"} {
		s.exec("UPDATE resource SET " + set)
		compare(set, forPatients("Observation?date=2004", postgres.ByRange), numbers{42, 0})
		s.exec("UPDATE resource SET " + current)
	}
}
