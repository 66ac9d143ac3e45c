package pipeline_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// recorded is a Provenance with a time.
func recorded(id any, at string, targets ...string) string {
	return strings.Replace(provenance(id, targets...), `,"target"`, fmt.Sprintf(`,"recorded":%q,"target"`, at), 1)
}

// by adds an agent to a Provenance.
func by(provenance, agent string) string {
	return strings.TrimSuffix(provenance, "}") + fmt.Sprintf(`,"agent":[{"who":{"reference":%q}}]}`, agent)
}

// associating is a request of the group for data and associated Provenance.
func associating(kind export.Associated, types ...string) export.Request {
	return export.Request{GroupID: groupID, Types: append(types, "Provenance"), Associated: kind}
}

var (
	obsFinal = observation(1, 1, `,"status":"final"`)
	obsDraft = observation(2, 1, `,"status":"draft"`)
	obsOther = observation(3, 2, `,"status":"final"`)

	proOld     = recorded("old", "2020-01-01T00:00:00Z", "Observation/obs-1")
	proZone    = recorded("zone", "2021-06-01T00:30:00+02:00", "Observation/obs-1") // 2021-05-31T22:30Z
	proNew     = recorded("new", "2021-05-31T23:00:00Z", "Observation/obs-1")
	proDraft   = recorded("draft", "2025-01-01T00:00:00Z", "Observation/obs-2")
	proMixed   = recorded("mixed", "2019-01-01T00:00:00Z", "Observation/obs-2", "Condition/con-1")
	proTwo     = recorded("two", "2018-01-01T00:00:00Z", "Observation/obs-1", "Observation/obs-3")
	proOutside = recorded("outside", "2026-01-01T00:00:00Z", "Observation/obs-1", "Observation/obs-9")
	proNine    = recorded("nine", "2026-01-01T00:00:00Z", "Observation/obs-9")
	proProv    = recorded("prov", "2026-01-01T00:00:00Z", "Provenance/pro-new", "Patient/pat-1")
	proUntimed = provenance("untimed", "Observation/obs-3")
	proOdd     = `{"resourceType":"Provenance","id":"pro-odd","recorded":7,"target":[{"reference":"Observation/obs-3"}]}`
)

func associatedStore(t *testing.T) *memory {
	t.Helper()
	return holding(t, patient(1), patient(2), patient(9), obsFinal, obsDraft, obsOther, observation(9, 9), condition(1, 1),
		proOld, proZone, proNew, proDraft, proMixed, proTwo, proOutside, proNine, proProv, proUntimed, proOdd)
}

func TestAssociatedProvenance(t *testing.T) { // P-26, P-27
	t.Parallel()
	fx := newFixture(t, associatedStore(t), members...)
	for name, row := range map[string]struct {
		kind    export.Associated
		types   []string
		filters []string
		want    []string
	}{
		"relevant": {export.RelevantProvenance, []string{"Observation"}, nil,
			[]string{obsFinal, obsDraft, obsOther, proOld, proZone, proNew, proDraft, proMixed, proTwo, proUntimed, proOdd}},
		"latest": {export.LatestProvenance, []string{"Observation"}, nil,
			[]string{obsFinal, obsDraft, obsOther, proNew, proDraft, proTwo}},
		"relevant to filtered data": {export.RelevantProvenance, []string{"Observation"}, []string{"Observation?status=final"},
			[]string{obsFinal, obsOther, proOld, proZone, proNew, proTwo, proUntimed, proOdd}},
		"latest of filtered data": {export.LatestProvenance, []string{"Observation"}, []string{"Observation?status=draft"},
			[]string{obsDraft, proDraft}},
		"one of several targets": {export.LatestProvenance, []string{"Condition"}, nil, []string{condition(1, 1), proMixed}},
		"relevant to patients":   {export.RelevantProvenance, []string{"Patient"}, nil, []string{patient(1), patient(2), proProv}},
		"a filter of Provenance itself": {export.LatestProvenance, []string{"Observation"}, []string{"Provenance?_id=pro-old,pro-two"},
			[]string{obsFinal, obsDraft, obsOther, proOld, proTwo}},
		"nothing is exported": {export.RelevantProvenance, []string{"Observation"}, []string{"Observation?status=amended"}, nil},
		"Provenance alone":    {export.RelevantProvenance, nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			request := associating(row.kind, row.types...)
			request.Filters = row.filters
			got := fx.run(request)
			got.wantLines(t, row.want...)
			got.wantIssues(t, "information", "Provenance: 1 left out") // proOutside, counted once
			sum := int64(len(got.lines["Provenance"]))
			must(t, fx.jobs.Results(t.Context(), got.job.ID, func(unit export.Unit, result export.Result) error {
				if unit.Type == "Provenance" {
					sum += result.Filtered + result.Withheld
				}
				return nil
			}))
			if sum != 10 {
				t.Errorf("%d Provenance are accounted for, want 10: all but proNine", sum)
			}
		})
	}
}

// TestNoAssociatedProvenance: without the parameter all Provenance about the cohort comes, whatever is filtered.
func TestNoAssociatedProvenance(t *testing.T) { // P-30
	t.Parallel()
	fx := newFixture(t, associatedStore(t), members...)
	request := export.Request{
		GroupID: groupID, Types: []string{"Observation", "Provenance"}, Filters: []string{"Observation?status=draft"},
	}
	fx.run(request).wantLines(t, obsDraft, proOld, proZone, proNew, proDraft, proMixed, proTwo, proProv, proUntimed, proOdd)
}

func TestProvenanceOfEqualTimes(t *testing.T) { // P-26
	t.Parallel()
	updated := func(id, at string) string {
		return fmt.Sprintf(`{"resourceType":"Provenance","id":"pro-%s","meta":{"lastUpdated":%q},"recorded":"2020-01-01T00:00:00Z",`+
			`"target":[{"reference":"Observation/obs-1"}]}`, id, at)
	}
	early, b := updated("z", "2020-01-01T00:00:00Z"), updated("b", "2020-01-01T00:00:00.001Z")
	c := updated("b-c", "2020-01-01T01:00:00.001+01:00")
	newFixture(t, holding(t, obsFinal, b, c, early), members...).run(associating(export.LatestProvenance, "Observation")).
		wantLines(t, obsFinal, c)
}

func TestAssociatedProvenanceOfTheSystem(t *testing.T) {
	t.Parallel()
	room, ofRoom := line("Location", "room"), recorded("room", "2020-01-01T00:00:00Z", "Location/room")
	valueSet, ofSet := line("ValueSet", "v"), recorded("set", "2020-01-01T00:00:00Z", "ValueSet/v")
	ofBoth := recorded("both", "2019-01-01T00:00:00Z", "ValueSet/v", "Observation/obs-1")
	gone := recorded("gone", "2026-01-01T00:00:00Z", "Observation/obs-unheld")
	ofProvenance := recorded("ofProvenance", "2026-01-01T00:00:00Z", "Provenance/pro-new")
	assigned := `{"resourceType":"Provenance","id":"pro-assigned","target":[{"reference":"Observation/obs-unheld","identifier":` +
		`{"assigner":{"reference":"Location/room"}}}]}`
	all := associatedStore(t)
	for _, r := range holding(t, room, ofRoom, valueSet, ofSet, ofBoth, gone, ofProvenance, assigned).resources {
		if r.ID == "pro-both" {
			r.Subjects = []string{"pat-1"}
		}
		all.resources = append(all.resources, r)
	}
	fx := newFixture(t, all)
	types := []string{"Location", "Observation", "ValueSet"}
	request := associating(export.RelevantProvenance, types...)
	request.Level, request.Filters = export.SystemLevel, []string{"Observation?status=final"}
	fx.run(request).wantLines(t, room, valueSet, obsFinal, obsOther,
		ofRoom, ofSet, ofBoth, proOld, proZone, proNew, proTwo, proOutside, proUntimed, proOdd)
	request.Associated = export.LatestProvenance
	fx.run(request).wantLines(t, room, valueSet, obsFinal, obsOther, ofRoom, ofSet, proOutside, proTwo)

	// For an owner who may see some patients the guard withholds more.
	fx.people.patients = directory.NameList{Names: []string{"pat-1", "pat-2"}}
	fx.run(request).wantLines(t, room, valueSet, obsFinal, obsOther, ofRoom, ofSet, proNew, proTwo)
	request.Associated = export.RelevantProvenance
	fx.run(request).wantLines(t, room, valueSet, obsFinal, obsOther,
		ofRoom, ofSet, ofBoth, proOld, proZone, proNew, proTwo, proUntimed, proOdd)
}

func TestAssociatedProvenanceOfReferencedTypes(t *testing.T) {
	t.Parallel()
	seen, idle := line("Practitioner", "seen", `,"active":true`), line("Practitioner", "idle", `,"active":false`)
	obs := observation(1, 1, `,"performer":[{"reference":"Practitioner/seen"},{"reference":"Practitioner/idle"}]`)
	agent, other := line("Practitioner", "agent", `,"active":true`), line("Practitioner", "other", `,"active":true`)
	hidden := line("Practitioner", "hidden", `,"active":true`)
	ofObs := by(recorded("obs", "2020-01-01T00:00:00Z", "Observation/obs-1"), "Practitioner/agent")
	oldOfObs := by(recorded("obs-old", "2019-01-01T00:00:00Z", "Observation/obs-1"), "Practitioner/other")
	ofSeen := by(recorded("seen", "2020-01-01T00:00:00Z", "Practitioner/seen", "Practitioner/idle"), "Organization/registry")
	oldOfSeen := recorded("seen-old", "2019-01-01T00:00:00Z", "Practitioner/seen", "Organization/registry")
	ofIdle := by(recorded("idle", "2021-01-01T00:00:00Z", "Practitioner/idle"), "Practitioner/hidden")
	fx := newFixture(t, holding(t, patient(1), obs, seen, idle, agent, other, hidden, org("registry"), ofObs, oldOfObs, ofSeen,
		oldOfSeen, ofIdle, org("stranger"), recorded("stranger", "2026-01-01T00:00:00Z", "Organization/stranger")), members...)
	types := []string{"Observation", "Organization", "Practitioner"}
	all := []string{obs, seen, idle, agent, other, hidden, org("registry"), ofObs, oldOfObs, ofSeen, oldOfSeen, ofIdle}
	request := associating(export.RelevantProvenance, types...)
	fx.run(request).wantLines(t, all...)
	request.Filters = []string{"Practitioner?active=true"} // drops idle, and the Provenance of it alone with its agent
	without := func(lines ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(line string) bool { return slices.Contains(lines, line) })
	}
	fx.run(request).wantLines(t, without(idle, ofIdle, hidden)...)
	request.Filters, request.Associated = nil, export.LatestProvenance
	fx.run(request).wantLines(t, without(oldOfObs, other)...) // oldOfSeen is the newest of the registry
	// Only referenced types were asked for (P-17).
	request = associating(export.RelevantProvenance, "Practitioner")
	request.Through = []string{"Observation", "Patient"}
	fx.run(request).wantLines(t, seen, idle, hidden, ofSeen, oldOfSeen, ofIdle)
}

// Provenance about a patient's resource that is filtered, and about a referenced one.
func TestAssociatedProvenanceOfPatientsAndReferencedTypes(t *testing.T) {
	t.Parallel()
	obs := observation(1, 1, `,"status":"final","performer":[{"reference":"Practitioner/seen"}]`)
	who := func(id string) string { return line("Practitioner", id) }
	mixed := func(id, year, practitioner, agent string) string {
		pro := recorded(id, year+"-01-01T00:00:00Z", "Observation/obs-2", "Practitioner/"+practitioner)
		return by(pro, "Practitioner/"+agent)
	}
	first, second := mixed("first", "2020", "seen", "agent"), mixed("second", "2020", "agent", "other")
	old, unseen := mixed("old", "2018", "seen", "ancient"), mixed("unseen", "2025", "unseen", "ancient")
	alone := recorded("alone", "2019-01-01T00:00:00Z", "Practitioner/seen")
	newest := recorded("newest", "2021-01-01T00:00:00Z", "Practitioner/other")
	beforeIt := mixed("before", "2017", "other", "ancient")
	withheld := by(recorded("withheld", "2026-01-01T00:00:00Z", "Observation/obs-9", "Practitioner/seen", "Patient/pat-1"),
		"Practitioner/ancient")
	fx := newFixture(t, holding(t, patient(1), obs, obsDraft, observation(9, 9), who("seen"), who("agent"), who("other"),
		who("ancient"), who("unseen"), first, second, old, unseen, alone, newest, beforeIt, withheld), members...)
	request := associating(export.LatestProvenance, "Observation", "Practitioner")
	request.Filters = []string{"Observation?status=final"}
	fx.run(request).wantLines(t, obs, who("seen"), who("agent"), who("other"), first, second, newest)
	request.Associated = export.RelevantProvenance
	fx.run(request).wantLines(t, obs, who("seen"), who("agent"), who("other"), who("ancient"),
		first, second, newest, old, alone, beforeIt)
}

func TestProvenanceThatIsWithdrawnLater(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, associatedStore(t), members...)
	w := fx.worker()
	job := fx.driveOne(fx.ask(associating(export.RelevantProvenance, "Condition")), func(task queue.Task) {
		if task.Kind == export.KindResolveReferences {
			fx.people.grant.Types = directory.Only("Condition")
		}
		must(t, w.Handle(t.Context(), task))
	})
	got := fx.outcome(job)
	got.wantLines(t, condition(1, 1))
	got.wantIssues(t, "", "error: Provenance: the permission was withdrawn.", "information: Provenance: 1 left out")
}

func TestAssociatedProvenanceIsReadTwiceUnderTheGuard(t *testing.T) {
	t.Parallel()
	hook := &hooked{Source: associatedStore(t), typ: "Provenance"}
	hook.before = func(_ context.Context, call int) error {
		if call > 1 {
			hook.extra = []source.Resource{resource("Provenance", "pro-nine", proNine, "pat-9")}
		}
		return nil
	}
	fx := newFixture(t, hook, members...)
	got := fx.run(associating(export.RelevantProvenance, "Condition"))
	got.wantLines(t, condition(1, 1))
	got.wantIssues(t, "", "error: A part of Provenance (Provenance-00000-kept) is missing", "information: Provenance: 1 left out")
}

// associatedNetwork is the network of everything, with agents, and what an undisturbed export gives.
func associatedNetwork(t *testing.T) (all *memory, want []string) {
	t.Helper()
	all, want = everything(t)
	var list []string
	for _, r := range all.resources {
		list = append(list, string(r.Body))
	}
	for i := range 6 {
		agent := travelling("Practitioner", fmt.Sprint("agent", i))
		newer := by(recorded(fmt.Sprint("new", i), "2021-01-01T00:00:00Z", fmt.Sprint("Condition/con-", i)), fmt.Sprint("Practitioner/agent", i))
		older := recorded(fmt.Sprint("old", i), "2020-01-01T00:00:00Z", fmt.Sprint("Condition/con-", i))
		ofAgent := recorded(fmt.Sprint("agent", i), "2020-01-01T00:00:00Z", fmt.Sprint("Practitioner/agent", i))
		list = append(list, agent, newer, older, ofAgent)
		want = append(want, agent, newer, ofAgent)
	}
	all = holding(t, list...)
	all.patients = 3
	return all, want
}

func TestAssociatedProvenanceKilledAtEveryRequestToTheStore(t *testing.T) {
	t.Parallel()
	for _, kind := range []export.Kind{
		export.KindExport, export.KindResolveReferences, export.KindExportReferenced, export.KindExportAssociated,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it waits for the client's own retries
			all, want := associatedNetwork(t)
			fx := newFixture(t, all, members...)
			fx.cfg.MaxAttempts = 1000
			fx.cfg.FileBytes = 2000
			request := associating(export.LatestProvenance, everyType...)
			request.Types = slices.Compact(slices.Sorted(slices.Values(request.Types)))
			got := fx.killedAtEveryRequest(fx.ask(request), func(task queue.Task) bool {
				return task.Kind == kind && (kind != export.KindExport || task.Unit == "Provenance-00000")
			})
			got.wantLines(t, want...)
			got.wantIssues(t, "error")
		})
	}
}

func TestAssociatedProvenanceThatCannotBeFound(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, associatedStore(t), members...)
	w := fx.worker()
	deaths := 0
	job := fx.drive(fx.ask(associating(export.RelevantProvenance, "Condition")), func(task queue.Task) {
		if task.Kind == export.KindResolveReferences && deaths < fx.cfg.MaxAttempts {
			deaths++
			fx.claim(task)
			return
		}
		must(t, w.Handle(t.Context(), task))
	})
	got := fx.outcome(job)
	got.wantLines(t, condition(1, 1))
	got.wantIssues(t, "", "error: Referenced resources and Provenance are missing: it was given up after 3 attempts.",
		"information: Provenance: 1 left out")
}

// TestAssociatedProvenanceOfManyPatients compares random stores of several chunks of patients with a plain evaluation.
func TestAssociatedProvenanceOfManyPatients(t *testing.T) {
	t.Parallel()
	const patients, held = 1100, 1200 // the group, and the store
	at := func(n int) string { return fmt.Sprintf("pat-%04d", n) }
	for seed := range uint64(2) {
		for _, kind := range []export.Associated{export.LatestProvenance, export.RelevantProvenance} {
			for _, level := range []export.Level{export.GroupLevel, export.SystemLevel} {
				t.Run(fmt.Sprint(seed, kind, level), func(t *testing.T) {
					t.Parallel()
					random := rand.New(rand.NewPCG(seed, 1))
					var lines, group, want []string
					status := make([]string, held)
					for n := range held {
						status[n] = []string{"final", "draft"}[random.IntN(2)]
						if n < patients {
							group = append(group, at(n))
						}
						obs := fmt.Sprintf(`{"resourceType":"Observation","id":"o%04d","status":%q,"subject":{"reference":"Patient/%s"}}`,
							n, status[n], at(n))
						lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, at(n)), obs)
						if status[n] == "final" && (n < patients || level == export.SystemLevel) {
							want = append(want, obs)
						}
					}
					type candidate struct{ when, id, line string }
					relevant, newest := map[string]bool{}, map[int]candidate{}
					for i := range 2500 {
						c := candidate{when: time.Unix(int64(random.IntN(300)), 0).UTC().Format(time.RFC3339), id: fmt.Sprintf("p%04d", i)}
						var targets, refs []string
						var numbers []int
						first, outside := random.IntN(held), false
						for range 1 + random.IntN(3) {
							n := []int{first, random.IntN(held)}[random.IntN(2)]
							numbers = append(numbers, n)
							outside = outside || n >= patients
							targets = append(targets, fmt.Sprintf("Observation/o%04d", n))
							refs = append(refs, fmt.Sprintf(`{"reference":%q}`, targets[len(targets)-1]))
						}
						c.line = fmt.Sprintf(`{"resourceType":"Provenance","id":%q,"recorded":%q,"target":[%s]}`, c.id, c.when,
							strings.Join(refs, ","))
						lines = append(lines, c.line)
						if outside && level == export.GroupLevel {
							continue
						}
						for _, n := range numbers {
							if status[n] != "final" {
								continue
							}
							relevant[c.line] = true
							if best := newest[n]; c.when > best.when || c.when == best.when && c.id > best.id {
								newest[n] = c
							}
						}
					}
					if kind == export.LatestProvenance {
						clear(relevant)
						for _, c := range newest {
							relevant[c.line] = true
						}
					}
					want = append(want, keysOf(relevant)...)
					random.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
					fx := newFixture(t, holding(t, lines...), group...)
					fx.cfg.UnitBytes = 1 // a unit for each chunk
					if seed%2 == 0 {
						fx.cfg.UnitBytes = 1 << 30
					}
					request := associating(kind, "Observation")
					request.Level, request.Filters = level, []string{"Observation?status=final"}
					fx.run(request).wantLines(t, want...)
				})
			}
		}
	}
}
