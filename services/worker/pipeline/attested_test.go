package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// attest returns r as a store gives it that keeps attestations.
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

// attesting gives what a source gives, attested.
type attesting struct {
	source.Source
	t testing.TB
}

func (a *attesting) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	return a.Source.ForPatients(ctx, q, func(r source.Resource) error { return yield(attest(a.t, r)) })
}

func TestAnAttestedExportIsTheSame(t *testing.T) { // pitfall 2
	var lines []string
	for i := range 200 { // past the audit's stride
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

func TestAnAttestedLeakPublishesNothing(t *testing.T) { // pitfalls 2, 10, 21
	foreign := attest(t, resource("Observation", "obs-9", observation(9, 9), "pat-1"))
	mine := attest(t, resource("Observation", "obs-8", observation(8, 1), "pat-1"))
	change := func(r source.Resource, how func(*source.Resource)) source.Resource {
		how(&r)
		return r
	}
	for name, leak := range map[string]source.Resource{
		"of somebody else":                 foreign,
		"with the patient of another line": change(foreign, func(r *source.Resource) { r.Named = mine.Named }),
		"with the head of another line": change(foreign, func(r *source.Resource) {
			r.ID, r.Named, r.Attestation = mine.ID, mine.Named, mine.Attestation
		}),
		"with the body of another line": change(mine, func(r *source.Resource) { r.Body = foreign.Body }),
		"by other rules": change(foreign, func(r *source.Resource) {
			r.Named = mine.Named
			r.Attestation = r.Attest()&^0xff | 0x7f
		}),
		"about nobody": attest(t, resource("Observation", "o", `{"resourceType":"Observation","id":"o"}`, "pat-1")),
		"of another type": change(mine, func(r *source.Resource) {
			r.Type = "Condition"
			r.Attestation = r.Attest()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			all, _, others := clinical(t)
			b := newFixture(t, &hooked{Source: &attesting{all, t}, typ: "Observation", extra: []source.Resource{leak}}, members...)
			b.cfg.FileBytes = 1 // files are finished before the leak
			got := b.export("Observation", "Condition", "Patient")
			got.wantLines(t, others...)
			got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: the source gave")
			b.wantMetric(1, "sluice_worker_guard_refusals_total")
		})
	}
}

// misread gives one observation of a store whose every attestation was made from a wrong reading.
type misread struct {
	source.Source
	reading source.Resource
}

func (m *misread) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	if q.Type != "Observation" {
		return m.Source.ForPatients(ctx, q, yield)
	}
	m.reading.Attestation = m.reading.Attest()
	return yield(m.reading)
}

func TestAStoreLoadedByBrokenRulesIsNoticed(t *testing.T) { // pitfall 2
	foreign := attest(t, resource("Observation", "obs-9", observation(9, 9), "pat-1"))
	foreign.Named = []string{"pat-1"}
	leading := attest(t, resource("Observation", "obs-8", observation(8, 1), "pat-1"))
	leading.References = []byte("Organization/stranger")
	for name, reading := range map[string]source.Resource{"of patients": foreign, "of references": leading} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t, &misread{holding(t, patient(1), observation(1, 1)), reading}, members...)
			got := b.export("Observation", "Patient")
			got.wantLines(t, patient(1))
			got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: the source gave")
		})
	}
}
