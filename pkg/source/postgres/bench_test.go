package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// BenchmarkPaths tells what the constants of choose.go stand for: reading a row of a kilobyte and passing it over, and one
// more descent of the index, here for a patient who has nothing.
func BenchmarkPaths(b *testing.B) {
	const people, each = 1000, 50
	s := newStore(b)
	var lines []string
	id := func(n int) string { return fmt.Sprintf("p%06d", n) }
	padding := strings.Repeat("x", 1000)
	for i := range people {
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, id(i)))
		for j := range each {
			lines = append(lines, fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d","status":"final","code":{"text":%q},`+
				`"subject":{"reference":"Patient/%s"}}`, id(i), j, padding, id(i)))
		}
	}
	s.load(ndjson(lines...))
	nobody := make([]string, people) // each behind a patient of the store
	for i := range nobody {
		nobody[i] = id(i) + "-nobody"
	}
	for _, row := range []struct {
		name     string
		patients []string
		path     any
		per      string
		units    int
	}{
		{"scan", []string{nobody[0], nobody[people-1]}, postgres.Scan, "ns/row", (people - 1) * each},
		{"lookups", nobody, postgres.Lookups, "ns/lookup", people},
	} {
		b.Run(row.name, func(b *testing.B) {
			q := source.Query{Type: "Observation", Patients: row.patients, AsOf: time.Now()}
			none := func(source.Resource) error { return fmt.Errorf("somebody has something") }
			for b.Loop() {
				var err error
				if row.path == any(postgres.Scan) {
					err = s.src.ForPatientsBy(b.Context(), postgres.Scan, q, none)
				} else {
					err = s.src.ForPatientsBy(b.Context(), postgres.Lookups, q, none)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(row.units), row.per)
		})
	}
}
