package pipeline_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// clinical holds data of the three members and of a foreign patient.
func clinical(t *testing.T) (all *memory, observations, others []string) {
	t.Helper()
	observations = []string{observation(1, 1), observation(2, 2), observation(3, 3), observation(4, 3)}
	others = []string{patient(1), patient(2), patient(3), condition(1, 2)}
	foreign := []string{patient(9), observation(9, 9), condition(9, 9)}
	return holding(t, concat(observations, foreign, others)...), observations, others
}

func TestOnlyTheCohortIsExported(t *testing.T) { // pitfall 2
	t.Parallel()
	all, observations, others := clinical(t)
	b := newFixture(t, all, members...)
	got := b.export("Observation", "Condition", "Patient")
	got.wantLines(t, concat(observations, others)...)
	got.wantIssues(t, "error")
	b.wantMetric(8, "sluice_worker_resources_total")
	b.wantMetric(3, "sluice_worker_units_total", "export", "done")
}

func TestALeakingSourcePublishesNothing(t *testing.T) { // pitfalls 2, 10, 21
	t.Parallel()
	foreign := resource("Observation", "obs-9", observation(9, 9), "pat-1")
	for name, leak := range map[string]source.Resource{"plain": foreign, "attested": attest(t, foreign)} {
		t.Run(name, func(t *testing.T) {
			all, _, others := clinical(t)
			leaking := &hooked{Source: all, typ: "Observation", extra: []source.Resource{leak}}
			fx := newFixture(t, leaking, members...)
			fx.cfg.FileBytes = 1 // files are finished before the leak
			got := fx.export("Observation", "Condition", "Patient")
			got.wantLines(t, others...)
			got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: the source returned")
			fx.wantMetric(1, "sluice_worker_guard_refusals_total")
			fx.wantMetric(1, "sluice_worker_units_total", "export", "failed")
			if leaking.calls != 1 {
				t.Errorf("%d attempts: a refusal is permanent", leaking.calls)
			}
		})
	}
}

func TestWhenEveryTypeLeaksTheJobFails(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	b := newFixture(t, &hooked{Source: all, extra: []source.Resource{resource("Flag", "f", "{}")}}, members...)
	got := b.export("Observation", "Condition", "Patient")
	if got.job.State != export.Failed || got.job.Failure != "The export could not be done: every part of it failed." {
		t.Errorf("the job is %s: %s", got.job.State, got.job.Failure)
	}
	b.wantMetric(3, "sluice_worker_guard_refusals_total")
	if want := instant.Add(b.cfg.Retention).Truncate(1e6); !got.job.Expires.Equal(want) {
		t.Errorf("it expires at %s, want %s", got.job.Expires, want)
	}
}

// A wrong clock of the worker that seals a job neither ends nor prolongs its retention.
func TestTheRetentionIsByTheClockOfRedis(t *testing.T) { // spec 6
	t.Parallel()
	all, _, _ := clinical(t)
	fx := newFixture(t, all, members...)
	fx.wrong = -2 * fx.cfg.Retention
	got := fx.export("Patient")
	want := instant.Add(fx.cfg.Retention).Truncate(time.Millisecond)
	if got.job.State != export.Completed || !got.job.Expires.Equal(want) {
		t.Errorf("the job is %s and expires at %s, want %s", got.job.State, got.job.Expires, want)
	}
}

func TestResourcesOfSeveralPatients(t *testing.T) { // pitfall 2
	t.Parallel()
	shared := []string{
		appointment(1, "pat-2", "pat-1"), appointment(2, "pat-3", "pat-3"), appointment(3, "pat-1", "pat-2", "pat-3"),
	}
	b := newFixture(t, holding(t, concat(shared, []string{
		appointment(4, "pat-1", "pat-9"), appointment(5, "pat-9"), appointment(6, "pat-2", "pat-9", "pat-3"), patient(1),
	})...), members...)
	got := b.export("Appointment")
	got.wantLines(t, shared...)
	got.wantIssues(t, "information", "Appointment: 2 left out: also about a patient outside the export.")
	b.wantMetric(2, "sluice_worker_withheld_total")
	b.wantMetric(0, "sluice_worker_guard_refusals_total")
}

// TestResourcesThatMayBeAboutSomebodyElseAreWithheld: unless the operator chooses otherwise (spec 10).
func TestResourcesThatMayBeAboutSomebodyElseAreWithheld(t *testing.T) { // pitfall 2
	t.Parallel()
	actors := func(id, other, more string) string {
		return fmt.Sprintf(`{"resourceType":"Appointment","id":%q,"participant":[{"actor":{"reference":"Patient/pat-1"}},{"actor":%s}]%s}`, id, other, more)
	}
	sure := []string{
		actors("practitioner", `{"reference":"Practitioner/p"}`, ""), actors("name", `{"display":"Dr. X"}`, ""),
		actors("mine", `{"reference":"Patient/pat-2"}`, `,"contained":[{"resourceType":"Observation","subject":{"reference":"Patient/pat-1"}}]`),
	}
	doubtful := []string{
		actors("identifier", `{"identifier":{"value":"MRN-9"},"display":"Person Nine"}`, ""), actors("urn", `{"reference":"urn:uuid:9"}`, ""),
		actors("search", `{"reference":"Patient?identifier=9"}`, ""), actors("inside", `{"reference":"#9"}`, `,"contained":[{"resourceType":"Patient","id":"9"}]`),
		actors("contained", `{"display":"x"}`, `,"contained":[{"resourceType":"Patient","id":"9"}]`), actors("related", `{"reference":"RelatedPerson/9"}`, ""),
	}
	foreign := []string{
		actors("foreign", `{"reference":"https://elsewhere.example/Patient/pat-1"}`, ""),
		actors("within", `{"display":"x"}`, `,"contained":[{"resourceType":"Observation","subject":{"reference":"Patient/pat-9"}}]`),
	}
	for setting, want := range map[string][]string{"withhold": sure, "export": concat(sure, doubtful)} {
		t.Run(setting, func(t *testing.T) {
			fx := newFixture(t, holding(t, concat(sure, doubtful, foreign)...), members...)
			fx.cfg.UnresolvedSubjects = setting
			got := fx.export("Appointment")
			got.wantLines(t, want...)
			issues := []string{"information: Appointment: 2 left out: also about a patient outside the export."}
			if setting == "withhold" {
				issues = append(issues, "warning: Appointment: 6 left out: also about somebody who cannot be identified")
			}
			got.wantIssues(t, "", issues...)
			fx.wantMetric(0, "sluice_worker_guard_refusals_total")
		})
	}
}

// TestReferencedRowsOfOlderRulesAreWithheld: one of them must not fail its type, nor is what it refers to followed.
func TestReferencedRowsOfOlderRulesAreWithheld(t *testing.T) {
	t.Parallel()
	stored := []string{
		observation(1, 1, `,"performer":[{"reference":"Practitioner/new"},{"reference":"Practitioner/old"}]`),
		`{"resourceType":"Practitioner","id":"new"}`, `{"resourceType":"Practitioner","id":"unnamed"}`,
		`{"resourceType":"Provenance","id":"new","target":[{"reference":"Practitioner/new"}]}`,
	}
	outdated := func(typ, more string) source.Resource {
		r := resource(typ, "old", fmt.Sprintf(`{"resourceType":%q,"id":"old"%s,"Subject":{},"x":{"reference":"Practitioner/unnamed"}}`, typ, more))
		r.Attestation = 1 // of the first rules
		return r
	}
	for typ, more := range map[string]string{"Practitioner": "", "Provenance": `,"target":[{"reference":"Practitioner/new"}]`} {
		t.Run(typ, func(t *testing.T) {
			fx := newFixture(t, &hooked{Source: holding(t, stored...), typ: typ, extra: []source.Resource{outdated(typ, more)}}, members...)
			got := fx.export("Observation", "Practitioner", "Provenance")
			got.wantLines(t, stored[0], stored[1], stored[3])
			got.wantIssues(t, "warning", typ+": 1 left out: not readable")
			fx.wantMetric(0, "sluice_worker_guard_refusals_total")
		})
	}
}

// TestRowsOfOlderRulesAreWithheldWhenTheirPatientIsNoLongerNamed: a rollout must not fail every export.
func TestRowsOfOlderRulesAreWithheldWhenTheirPatientIsNoLongerNamed(t *testing.T) {
	t.Parallel()
	outdated := func(line string) source.Resource {
		r := resource("Observation", "obs-1", line, "pat-1")
		r.Attestation = 1 // of the first rules
		return r
	}
	for name, row := range map[string]struct{ line, why string }{
		"another server": {`{"resourceType":"Observation","id":"obs-1","subject":{"reference":"https://elsewhere.example/Patient/pat-1"}}`,
			"names a patient of another server"},
		"a key in two cases": {`{"resourceType":"Observation","id":"obs-1","Subject":{},"subject":{"reference":"Patient/pat-1"}}`, "not readable"},
	} {
		t.Run(name, func(t *testing.T) {
			fx := newFixture(t, &hooked{Source: holding(t, observation(2, 1)), typ: "Observation", extra: []source.Resource{outdated(row.line)}}, members...)
			got := fx.export("Observation")
			got.wantLines(t, observation(2, 1))
			got.wantIssues(t, "warning", row.why)
		})
	}
}

func TestAProvenanceIsAboutThePatientsOfItsTargets(t *testing.T) { // pitfall 2
	t.Parallel()
	mine := []string{provenance(1, "Observation/obs-1"), provenance(2, "Patient/pat-1", "Observation/obs-2")}
	b := newFixture(t, holding(t, concat(mine, []string{
		observation(1, 1), observation(2, 2), observation(9, 9), patient(1), patient(2),
		provenance(3, "Observation/obs-1", "Observation/obs-9"), provenance(4, "Observation/obs-9"), provenance(5, "Patient/pat-9"),
	})...), members...)
	got := b.export("Provenance")
	got.wantLines(t, mine...)
	got.wantIssues(t, "information", "Provenance: 1 left out: also about a patient outside the export.")
}

// crowd returns the sorted ids of a cohort with two chunks.
func crowd() []string {
	ids := make([]string, spillset.ChunkSize+10)
	for i := range ids {
		ids[i] = fmt.Sprintf("pat-%05d", i)
	}
	return ids
}

func TestSharedResourcesAreWrittenOnceAcrossUnits(t *testing.T) {
	t.Parallel()
	ids := crowd()
	first, last := ids[0], ids[len(ids)-1]
	shared := []string{
		appointment(1, last, first), appointment(2, first, last), appointment(3, last), appointment(4, first),
		appointment(5, ids[spillset.ChunkSize-1], ids[spillset.ChunkSize]),
	}
	for name, unitBytes := range map[string]int64{"two units": 1, "one unit": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t, holding(t, shared...), ids...)
			b.cfg.UnitBytes = unitBytes
			got := b.export("Appointment")
			got.wantLines(t, shared...)
			got.wantIssues(t, "error")
			if units := b.metric("sluice_worker_units_total", "export"); units != map[string]float64{"two units": 2, "one unit": 1}[name] {
				t.Errorf("%v units", units)
			}
		})
	}
}

// Outsiders whose id sorts before all members, between two of them, or after.
var outsiders = []string{"pat-", "pat-00000-x", "pat-9"}

func TestWithheldResourcesAreCountedOnceWhereverTheOutsiderSorts(t *testing.T) { // pitfall 2
	t.Parallel()
	ids := crowd()
	first, last := ids[0], ids[len(ids)-1]
	mine := appointment("mine", first, last)
	lines := []string{mine, observation("o", "00000"), observation("p", last[len("pat-"):])}
	mineToo := provenance("mine", "Observation/obs-o", "Observation/obs-p")
	lines = append(lines, mineToo)
	for i, outsider := range outsiders {
		foreign := fmt.Sprintf(`{"resourceType":"Observation","id":"f-%d","subject":{"reference":"Patient/%s"}}`, i, outsider)
		lines = append(lines, foreign,
			appointment(fmt.Sprint("one", i), outsider, last),
			appointment(fmt.Sprint("two", i), last, outsider, first), // in both chunks
			appointment(fmt.Sprint("none", i), outsider),
			provenance(fmt.Sprint("two", i), "Observation/obs-o", "Observation/obs-p", fmt.Sprintf("Observation/f-%d", i)),
			provenance(fmt.Sprint("none", i), fmt.Sprintf("Observation/f-%d", i)),
		)
	}
	for name, unitBytes := range map[string]int64{"two units": 1, "one unit": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t, holding(t, lines...), ids...)
			b.cfg.UnitBytes = unitBytes
			got := b.export("Appointment", "Provenance")
			got.wantLines(t, mine, mineToo)
			left := map[string]int{}
			for _, issue := range got.issues {
				var typ string
				var count int
				if _, err := fmt.Sscanf(strings.Replace(issue.Diagnostics, ":", "", 1), "%s %d", &typ, &count); err != nil {
					t.Errorf("%q: %v", issue.Diagnostics, err)
				}
				left[typ] += count
			}
			if want := map[string]int{"Appointment": 6, "Provenance": 3}; !maps.Equal(left, want) {
				t.Errorf("left out %v, want %v", left, want)
			}
			b.wantMetric(9, "sluice_worker_withheld_total")
			b.wantMetric(0, "sluice_worker_guard_refusals_total")
		})
	}
}

func TestASourceThatReturnsAnotherUnitsResourceIsRefused(t *testing.T) { // pitfall 2
	t.Parallel()
	ids := crowd()
	first, last := ids[0], ids[len(ids)-1]
	own := appointment(2, first)
	foreign := resource("Appointment", "app-1", appointment(1, first), last)
	fx := newFixture(t, &naive{Source: holding(t, own, appointment(3, last)), line: foreign, patient: last}, ids...)
	fx.cfg.UnitBytes = 1
	got := fx.export("Appointment")
	got.wantLines(t, own)
	got.wantIssues(t, "error", "a patient that was not requested")
}

// naive is a source that also returns its line whenever the patient is requested.
type naive struct {
	source.Source
	line    source.Resource
	patient string
}

func (n *naive) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	if err := n.Source.ForPatients(ctx, q, yield); err != nil {
		return err
	}
	if _, asked := slices.BinarySearch(q.Patients, n.patient); asked {
		return yield(n.line)
	}
	return nil
}
