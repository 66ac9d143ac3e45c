package typefilter_test

import (
	"testing"

	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// BenchmarkMatches has one filter of each kind that clients send, on generated resources. MB/s is of lines read.
func BenchmarkMatches(b *testing.B) {
	dir := b.TempDir()
	if _, err := synth.Generate(b.Context(), synth.Config{Patients: 20, Seed: 1, Dir: dir}); err != nil {
		b.Fatal(err)
	}
	samples := readSamples(b, dir, 300)
	for _, c := range []struct{ name, query string }{
		{"token of a code", "Observation?status=final"},
		{"token of a concept", "Observation?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"},
		{"no match", "Observation?code=http://loinc.org|0-0"},
		{"date", "Observation?date=ge2020-01-01"},
		{"string", "Patient?name=smith"},
		{"reference", "Observation?patient=Patient/1"},
		{"quantity", "Observation?value-quantity=gt100||mg/dL"},
		{"two", "Observation?code=8302-2,29463-7&date=ge2015"},
		{"last updated", "Observation?_lastUpdated=ge2030"},
	} {
		q, err := typefilter.Parse(c.query)
		if err != nil {
			b.Fatal(err)
		}
		f := typefilter.Compile(q.Type(), []typefilter.Query{q}, nil)
		lines := samples[q.Type()]
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			total := 0
			for i := 0; b.Loop(); i++ {
				line := lines[i%len(lines)].line
				if _, err := f.Matches(line); err != nil {
					b.Fatal(err)
				}
				total += len(line)
			}
			b.SetBytes(int64(total / b.N))
		})
	}
}

// BenchmarkSketch has the types that are frequent or long.
func BenchmarkSketch(b *testing.B) {
	dir := b.TempDir()
	if _, err := synth.Generate(b.Context(), synth.Config{Patients: 20, Seed: 1, Dir: dir}); err != nil {
		b.Fatal(err)
	}
	samples := readSamples(b, dir, 300)
	for _, typ := range []string{"Observation", "Condition", "Encounter", "DiagnosticReport", "Patient"} {
		b.Run(typ, func(b *testing.B) {
			b.ReportAllocs()
			s, lines, total := typefilter.NewSketcher(typ), samples[typ], 0
			for i := 0; b.Loop(); i++ {
				line := lines[i%len(lines)].line
				s.Sketch(line)
				total += len(line)
			}
			b.SetBytes(int64(total / b.N))
		})
	}
	b.Run("of a type", func(b *testing.B) {
		for b.Loop() {
			typefilter.NewSketcher("Observation")
		}
	})
}
