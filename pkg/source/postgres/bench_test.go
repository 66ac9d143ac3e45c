package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

func numbered(n int) string { return fmt.Sprintf("p%06d", n) }

// kilobytes returns patients with as many Observations of a kilobyte each.
func kilobytes(people, each int) map[string][]byte {
	var lines []string
	padding := strings.Repeat("x", 1000)
	for i := range people {
		id := numbered(i)
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, id))
		for j := range each {
			lines = append(lines, fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d","status":"final","code":{"text":%q},`+
				`"subject":{"reference":"Patient/%s"}}`, id, j, padding, id))
		}
	}
	return ndjson(lines...)
}

// BenchmarkPaths measures the constants of choose.go: reading and skipping a row of a kilobyte, and one index descent,
// here for a patient without data.
func BenchmarkPaths(b *testing.B) {
	const people, each = 1000, 50
	s := newStore(b)
	s.load(kilobytes(people, each))
	id := numbered
	absent := make([]string, people) // each between two patients of the store
	for i := range absent {
		absent[i] = id(i) + "-absent"
	}
	for _, row := range []struct {
		name     string
		patients []string
		by       postgres.Path
		per      string
		units    int
	}{
		{"scan", []string{absent[0], absent[people-1]}, postgres.ByRange, "ns/row", (people - 1) * each},
		{"lookups", absent, postgres.ByPatient, "ns/lookup", people},
	} {
		b.Run(row.name, func(b *testing.B) {
			q := source.Query{Type: "Observation", Patients: row.patients, AsOf: time.Now()}
			none := func(source.Resource) error { return fmt.Errorf("got a resource") }
			for b.Loop() {
				err := s.src.ForPatientsBy(b.Context(), row.by, q, none)
				must(b, err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(row.units), row.per)
		})
	}
}

// BenchmarkEverything reads a type whole and in ranges of patients, and its bodies alone by the plainest query.
func BenchmarkEverything(b *testing.B) {
	const people, each, ranges = 1000, 50, 8
	s := newStore(b)
	s.load(kilobytes(people, each))
	pool, err := pgdb.Open(b.Context(), pgdb.Config{URL: s.url, Connections: 1, ReadBuffer: 128 << 10})
	must(b, err)
	defer pool.Close()
	read := func(from, to string) (n int) {
		q := source.EverythingQuery{Type: "Observation", From: from, To: to, AsOf: time.Now()}
		must(b, s.src.Everything(b.Context(), q, func(source.Resource) error { n++; return nil }))
		return n
	}
	for _, way := range []struct {
		name string
		rows func() int
	}{
		{"bodies", func() (n int) {
			rows, err := pool.Query(b.Context(), "SELECT body FROM resource_observation")
			must(b, err)
			for rows.Next() {
				n += min(1, len(rows.RawValues()[0]))
			}
			must(b, rows.Err())
			return n
		}},
		{"whole", func() int { return read("", "") }},
		{"ranges", func() (n int) {
			from := ""
			for i := 1; i < ranges; i++ {
				to := numbered(i * people / ranges)
				n += read(from, to)
				from = to
			}
			return n + read(from, "")
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				if n := way.rows(); n != people*each {
					b.Fatalf("%d rows", n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/people/each, "ns/row")
		})
	}
}

func BenchmarkSubjects(b *testing.B) {
	sourcetest.BenchmarkSubjects(b, func(b *testing.B, files map[string][]byte) source.Source {
		s := newStore(b)
		s.load(files)
		return s.src
	})
}

// BenchmarkIdentifiers loads n resources that name one patient, each by another identifier. The cost for each must not grow
// with n.
func BenchmarkIdentifiers(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var identifiers, lines []string
			for i := range n {
				identifiers = append(identifiers, fmt.Sprintf(`{"system":"s","value":"%d"}`, i))
				lines = append(lines, fmt.Sprintf(
					`{"resourceType":"Observation","id":"%d","subject":{"reference":"Patient?identifier=s|%d"}}`, i, i))
			}
			lines = append(lines, `{"resourceType":"Patient","id":"p","identifier":[`+strings.Join(identifiers, ",")+`]}`)
			s := newStore(b)
			for b.Loop() {
				s.load(ndjson(lines...))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/resource")
		})
	}
}

// BenchmarkWindow reads the Observations of all patients in queries of 512, whole and what a second load changed: one of a
// hundred.
func BenchmarkWindow(b *testing.B) {
	const people, each = 1000, 100
	s := newStore(b)
	keep := postgres.LoadConfig{Parallel: 2, History: time.Hour}
	padding := strings.Repeat("x", 1000)
	observed := func(i, j, day int) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d","meta":{"lastUpdated":"2026-01-%02dT00:00:00Z"},`+
			`"code":{"text":%q},"subject":{"reference":"Patient/%s"}}`, numbered(i), j, day, padding, numbered(i))
	}
	var all, first, second []string
	for i := range people {
		all = append(all, numbered(i))
		first = append(first, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, numbered(i)))
		for j := range each {
			first = append(first, observed(i, j, 1))
		}
		second = append(second, observed(i, i%each, 2))
	}
	s.loadWith(ndjson(first...), keep)
	between, err := s.src.Snapshot(b.Context(), time.Now())
	must(b, err)
	s.loadWith(ndjson(second...), keep)
	s.open()
	for _, way := range []struct {
		name   string
		window source.Window
		rows   int
	}{
		{"whole", source.Window{}, people * each},
		{"after", source.Window{After: between}, people},
		{"since", source.Window{Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}, people},
	} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				rows := 0
				for patients := range slices.Chunk(all, 512) {
					q := source.Query{Type: "Observation", Patients: patients, AsOf: time.Now(), Window: way.window}
					must(b, s.src.ForPatients(b.Context(), q, func(source.Resource) error { rows++; return nil }))
				}
				if rows != way.rows {
					b.Fatalf("%d rows, want %d", rows, way.rows)
				}
			}
		})
		b.Run("system level, "+way.name, func(b *testing.B) {
			for b.Loop() {
				rows := 0
				q := source.EverythingQuery{Type: "Observation", AsOf: time.Now(), Window: way.window}
				must(b, s.src.Everything(b.Context(), q, func(source.Resource) error { rows++; return nil }))
				if rows != way.rows {
					b.Fatalf("%d rows, want %d", rows, way.rows)
				}
			}
		})
	}
}

// BenchmarkNarrowing reads the Observations of all patients in one query, checks their attestations and filters them: whole,
// and narrowed by a filter that keeps one of a hundred, or all.
func BenchmarkNarrowing(b *testing.B) {
	const people, each = 500, 100
	s := newStore(b)
	padding := strings.Repeat("x", 1000)
	var all, lines []string
	for i := range people {
		all = append(all, numbered(i))
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, numbered(i)))
		for j := range each {
			lines = append(lines, fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d","status":"final",`+
				`"code":{"coding":[{"code":"c%d"}],"text":%q},"subject":{"reference":"Patient/%s"}}`,
				numbered(i), j, j, padding, numbered(i)))
		}
	}
	s.load(ndjson(lines...))
	for _, way := range []struct {
		name, query string
		narrowed    bool
		kept        int
	}{
		{"few, whole", "Observation?code=c7", false, people},
		{"few, narrowed", "Observation?code=c7", true, people},
		{"all, whole", "Observation?status=final", false, people * each},
		{"all, narrowed", "Observation?status=final", true, people * each},
	} {
		q, err := typefilter.Parse(way.query)
		must(b, err)
		filter := typefilter.Compile("Observation", []typefilter.Query{q}, nil)
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				kept, rows, leftOut := 0, 0, int64(0)
				query := source.Query{Type: "Observation", Patients: all, AsOf: time.Now()}
				if way.narrowed {
					query.Narrowing = source.Narrowing{Bound: filter.Bound(), LeftOut: func(n int64) { leftOut += n }}
				}
				must(b, s.src.ForPatients(b.Context(), query, func(r source.Resource) error {
					rows++
					matches, err := filter.Matches(r.Body)
					if matches && r.Attest() == r.Attestation {
						kept++
					}
					return err
				}))
				if kept != way.kept || rows+int(leftOut) != people*each {
					b.Fatalf("%d kept, %d rows and %d left out", kept, rows, leftOut)
				}
			}
		})
	}
}
