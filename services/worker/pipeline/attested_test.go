package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// attest returns r with its attestation, as a load makes it.
func attest(t testing.TB, r source.Resource) source.Resource {
	t.Helper()
	var scanner fhir.Scanner
	facts, err := scanner.Scan(r.Body)
	must(t, err)
	var read source.Resource
	source.Read(&read, facts, r.Body)
	r.Named, r.References, r.Attestation = read.Named, read.References, read.Attestation
	return r
}

// attesting is a source whose resources are attested.
type attesting struct {
	source.Source
	t testing.TB
}

func (a *attesting) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	return a.Source.ForPatients(ctx, q, func(r source.Resource) error { return yield(attest(a.t, r)) })
}

func TestAnAttestedExportIsTheSame(t *testing.T) { // pitfall 2
	t.Parallel()
	var lines []string
	for i := range 100 { // more than recheckEvery
		lines = append(lines, observation(i, 1+i%3, fmt.Sprintf(`,"performer":[{"reference":"Practitioner/p%d"}]`, i%5)))
	}
	lines = append(lines, patient(1), patient(2), appointment(1, "pat-1", "pat-2"), appointment(2, "pat-1", "pat-9"),
		provenance(1, "Observation/obs-1"), provenance(2, "Observation/obs-1", "Patient/pat-9"), provenance(3, "Patient/pat-2"))
	for i := range 6 {
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Practitioner","id":"p%d"}`, i))
	}
	foreign := []string{patient(9), observation("f", 9)}
	types := []string{"Appointment", "Observation", "Patient", "Practitioner", "Provenance"}
	all := holding(t, concat(lines, foreign)...)

	plain := newFixture(t, all, members...).export(types...)
	attested := newFixture(t, &attesting{all, t}, members...).export(types...)
	want := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return line == appointment(2, "pat-1", "pat-9") || line == provenance(2, "Observation/obs-1", "Patient/pat-9") ||
			line == `{"resourceType":"Practitioner","id":"p5"}` // nothing names it
	})
	plain.wantLines(t, want...)
	attested.wantLines(t, want...)
}
