package pipeline_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// organized is a request of blocks of patients.
func organized(types ...string) export.Request {
	return export.Request{GroupID: groupID, Types: types, OrganizedBy: "Patient"}
}

// blocks returns the lines of the blocks by patient, in their order without headers. It checks the form of the files: a file
// begins with a header, a block that goes on in the next file has its header there and is in no other, and each block has
// the Patient first.
func (fx *fixture) blocks(o outcome) map[string][]string {
	fx.t.Helper()
	if o.job.State != export.Completed {
		fx.t.Fatalf("the job is %s: %s", o.job.State, o.job.Failure)
	}
	found := map[string][]string{}
	written := map[string]int64{}
	continues := map[string]string{} // patient by file
	for _, file := range o.files {
		if file.Error || file.Deleted {
			continue
		}
		if file.Type != "Parameters" {
			fx.t.Errorf("%s is not organized", file.Name)
		}
		patient, lines := "", fx.readFile(file)
		for i, text := range lines {
			var header struct {
				ResourceType string
				Parameter    []struct {
					Name           string
					ValueReference struct{ Reference string }
				}
			}
			must(fx.t, json.Unmarshal([]byte(text), &header))
			if header.ResourceType != "Parameters" {
				found[patient] = append(found[patient], text)
				written[header.ResourceType]++
				continue
			}
			if len(header.Parameter) != 1 || header.Parameter[0].Name != "header" || i == len(lines)-1 {
				fx.t.Errorf("%s, line %d is not the header of a block: %s", file.Name, i, text)
				continue
			}
			patient = strings.TrimPrefix(header.Parameter[0].ValueReference.Reference, "Patient/")
			if _, begun := found[patient]; begun != (i == 0 && continues[file.Name] == patient) {
				fx.t.Errorf("%s: the block of %s begins, or goes on: %v", file.Name, patient, begun)
			}
		}
		if !strings.HasPrefix(lines[0], `{"resourceType":"Parameters"`) {
			fx.t.Errorf("%s begins without a header", file.Name)
		}
		if file.Continues != "" {
			continues[file.Continues] = patient
		}
	}
	for name := range continues {
		if !slices.ContainsFunc(o.files, func(f export.File) bool { return f.Name == name }) {
			fx.t.Errorf("there is no file %s", name)
		}
	}
	for patient, lines := range found {
		at := slices.IndexFunc(lines, func(text string) bool { return fhir.PeekType([]byte(text)) == "Patient" })
		if at > 0 {
			fx.t.Errorf("the Patient is not first in the block of %s", patient)
		}
	}
	for _, n := range o.job.Resources {
		if n.Written != written[n.Type] {
			fx.t.Errorf("%d of %s written, %d lines", n.Written, n.Type, written[n.Type])
		}
		if n.Expected != nil && *n.Expected != n.Written+n.Filtered+n.Withheld+*n.LeftOut {
			fx.t.Errorf("%s does not add up: %+v", n.Type, n)
		}
		delete(written, n.Type)
	}
	if len(written) > 0 {
		fx.t.Errorf("lines without numbers: %v", written)
	}
	return found
}

// wantBlocks checks that there are exactly these blocks. Within a block only the Patient has a place.
func (fx *fixture) wantBlocks(o outcome, want map[string][]string) {
	fx.t.Helper()
	got := fx.blocks(o)
	for _, patient := range keysOf(got) {
		if len(want[patient]) == 0 {
			fx.t.Errorf("a block of %s: %v", patient, got[patient])
		}
	}
	for patient, lines := range want {
		got, want := slices.Sorted(slices.Values(got[patient])), slices.Sorted(slices.Values(lines))
		if !slices.Equal(got, want) {
			fx.t.Errorf("block of %s:\n%s\nwant\n%s", patient, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// society is a store of three members and somebody else, with the blocks of the members.
func society(t *testing.T) (*memory, map[string][]string) {
	t.Helper()
	gp := ref("asserter", "Practitioner/gp")
	alone := line("Condition", "con-alone", ref("subject", "Patient/pat-1"), gp)
	shared := appointment("shared", "pat-2", "pat-1")
	about := provenance("both", "Observation/obs-1", "Observation/obs-2")
	doctor := travelling("Practitioner", "gp", "Organization/ward", "Organization/absent")
	ward := org("ward", "hospital")
	hospital := org("hospital", "ward")
	blocks := map[string][]string{
		"pat-1": {patient(1), observation(1, 1), alone, shared, about, doctor, ward, hospital},
		"pat-2": {patient(2), observation(2, 2), shared, about},
		"pat-3": {observation(3, 3, ref("encounter", "Organization/ward")), ward, hospital},
	}
	return holding(t, patient(2), patient(1), patient(9), observation(2, 2), observation(1, 1), alone, shared, about,
		blocks["pat-3"][0], doctor, ward, hospital, org("stranger"), observation(9, 9), appointment("withheld", "pat-1", "pat-9"),
		appointment("twice", "pat-1", "pat-2", "pat-9"), provenance("ward", "Organization/ward"),
	), blocks
}

var socialTypes = []string{
	"Appointment", "Condition", "Observation", "Organization", "Patient", "Practitioner", "Provenance",
}

// P-37: whatever fits in memory or in a file.
func TestBlocksOfPatients(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ memory, companions, file int64 }{
		"in memory":                       {1 << 20, 1 << 20, 1 << 20},
		"fewer patients at a time":        {1400, 1 << 20, 1 << 20},
		"streamed":                        {1, 1 << 20, 1 << 20},
		"streamed, companions read again": {1, 0, 1 << 20},
		"companions read again":           {1 << 20, 0, 1 << 20},
		"a line a file":                   {1 << 20, 1 << 20, 1},
		"streamed, a line a file":         {1, 200, 1},
		"a few lines a file":              {1 << 20, 200, 500},
		"streamed, a few lines a file":    {1, 200, 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, want := society(t)
			fx := newFixture(t, src, members...)
			fx.cfg.FileBytes = row.file
			w := fx.worker()
			w.SetMemory(row.memory, row.companions)
			got := fx.outcome(fx.finish(w, fx.ask(organized(socialTypes...))))
			fx.wantBlocks(got, want)
			got.wantIssues(t, "information", "Appointment: 2 left out: also about a patient outside the export.",
				"Provenance: some left out: not about a patient.")
			fx.wantMetric(2, "sluice_worker_withheld_total")
			fx.wantMetric(0, "sluice_worker_guard_refusals_total")
			// Lines are never split from their file needlessly.
			if row.file == 1<<20 && row.memory > 1 && len(got.files) != 2 {
				t.Errorf("%d files", len(got.files))
			}
		})
	}
}

// A resource about several members is in the block of each, and of those alone, in whichever unit they are.
func TestBlocksAcrossUnits(t *testing.T) {
	t.Parallel()
	ids := crowd()
	first, last := ids[0], ids[len(ids)-1]
	shared := appointment(1, last, first)
	lines := []string{shared, appointment(2, last), appointment(3, first, "pat-9", last), appointment(4, last, "pat-9")}
	fx := newFixture(t, holding(t, lines...), ids...)
	fx.cfg.UnitBytes = 1
	got := fx.run(organized("Appointment"))
	fx.wantBlocks(got, map[string][]string{first: {shared}, last: {shared, lines[1]}})
	got.wantIssues(t, "information", "Appointment: 2 left out")
	fx.wantMetric(2, "sluice_worker_units_total", "export", "done")
}

// Only an exported resource has companions, and each stage of the chain applies to its own types.
func TestBlocksWithFilterAndElements(t *testing.T) {
	t.Parallel()
	src, _ := society(t)
	fx := newFixture(t, src, members...)
	request := organized(socialTypes...)
	request.Filters = []string{"Observation?_id=obs-2", "Organization?_id=hospital", "Patient?_id=pat-1"}
	request.Elements = []string{"Practitioner.id"}
	got := fx.run(request)
	blocks := fx.blocks(got)
	reduced := `{"resourceType":"Practitioner","id":"gp","meta":{"tag":[{"system":` +
		`"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}}`
	if len(blocks) != 2 || len(blocks["pat-1"]) != 5 || !slices.Contains(blocks["pat-1"], reduced) {
		t.Errorf("%v", blocks)
	}
	if want := []string{appointment("shared", "pat-2", "pat-1"), observation(2, 2), provenance("both",
		"Observation/obs-1", "Observation/obs-2")}; !slices.Equal(slices.Sorted(slices.Values(blocks["pat-2"])), slices.Sorted(slices.Values(want))) {
		t.Errorf("%v", blocks["pat-2"])
	}
}

// P-17: referenced types alone.
func TestBlocksOfReferencedTypesAlone(t *testing.T) {
	t.Parallel()
	src, _ := society(t)
	fx := newFixture(t, src, members...)
	request := organized("Organization")
	request.Through = []string{"Condition", "Observation", "Patient", "Practitioner"}
	ward, hospital := org("ward", "hospital"), org("hospital", "ward")
	fx.wantBlocks(fx.run(request), map[string][]string{"pat-1": {ward, hospital}, "pat-3": {ward, hospital}})
	request.Through = []string{"Observation", "Patient"}
	fx.wantBlocks(fx.run(request), map[string][]string{"pat-3": {ward, hospital}})
}

// A refusal of the guard, or the failure of one type, publishes nothing of the unit.
func TestBlocksOfALeakingSource(t *testing.T) {
	t.Parallel()
	for typ, leak := range map[string]source.Resource{
		"Observation":  resource("Observation", "obs-9", observation(9, 9), "pat-1"),
		"Organization": resource("Organization", "stranger", org("stranger")),
	} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			src, _ := society(t)
			fx := newFixture(t, &hooked{Source: src, typ: typ, extra: []source.Resource{leak}}, members...)
			fx.cfg.FileBytes = 1
			got := fx.run(organized(socialTypes...))
			if got.job.State != export.Failed {
				t.Errorf("the job is %s", got.job.State)
			}
			fx.wantMetric(1, "sluice_worker_guard_refusals_total")
		})
	}
}

// One unit that fails is told, and its numbers are unknown.
func TestBlocksOfAFailedUnit(t *testing.T) {
	t.Parallel()
	ids := crowd()
	last := ids[len(ids)-1]
	src := holding(t, appointment(1, ids[0]), appointment(2, last))
	fx := newFixture(t, &naive{Source: src, line: resource("Appointment", "app-9", appointment(9, "pat-x"), last), patient: last}, ids...)
	fx.cfg.UnitBytes = 1
	got := fx.run(organized("Appointment"))
	fx.wantBlocks(got, map[string][]string{ids[0]: {appointment(1, ids[0])}})
	got.wantIssues(t, "error", "The blocks of some patients (organized-00001) are missing: the source returned")
	if n := got.job.Resources; len(n) != 1 || n[0].Expected != nil || n[0].Failed != 1 {
		t.Errorf("%+v", n)
	}
}

// Workers that die and sources that fail repeat a unit; each block is published once.
func TestBlocksAfterFailures(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"Observation", "Organization"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			src, want := society(t)
			fx := newFixture(t, failing(src, typ, 1), members...)
			fx.cfg.FileBytes = 500
			w, killed := fx.worker(), map[export.UnitID]bool{}
			job := fx.drive(fx.ask(organized(socialTypes...)), func(task queue.Task) {
				if task.Kind == export.KindExport && !killed[task.Unit] {
					killed[task.Unit] = true
					lease, err := fx.jobs.Claim(t.Context(), task.Job, task.Unit, task.Kind, task.Fence, "dies")
					must(t, err)
					_, err = w.Unsettled(t.Context(), lease)
					if err == nil {
						t.Error("the source did not fail")
					}
					return
				}
				must(t, w.Handle(t.Context(), task))
			})
			fx.wantBlocks(fx.outcome(job), want)
		})
	}
}

// At the system level what is about nobody is in no block, unless a block references it.
func TestBlocksAtTheSystemLevel(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...))
	request := organized(storedTypes...)
	request.Level, request.GroupID = export.SystemLevel, ""
	got := fx.run(request)
	fx.wantBlocks(got, map[string][]string{
		"pat-1": {patient(1), observation(1, 1), appointment("both", "pat-1", "pat-9"), appointment("shown", "pat-1", "pat-2"),
			provenance(1, "Observation/obs-1")},
		"pat-2": {patient(2), observation(2, 2), appointment("shown", "pat-1", "pat-2")},
		"pat-9": {patient(9), observation(9, 9), appointment("both", "pat-1", "pat-9")},
	})
	for _, typ := range []string{"Binary", "Group", "Location", "Practitioner", "Provenance", "ValueSet"} {
		if !slices.ContainsFunc(got.issues, func(i fhir.Issue) bool {
			return strings.HasPrefix(i.Diagnostics, typ+": some left out: not about a patient")
		}) {
			t.Errorf("%s is not told: %v", typ, got.issues)
		}
	}
}

// A chain of incremental organized exports gives a client the same as a whole one.
func TestBlocksOfIncrements(t *testing.T) {
	t.Parallel()
	h := &history{now: instant.Truncate(time.Second)}
	fx := newFixture(t, h, "pat-1", "pat-2")
	put := func(text string) {
		name := nameOf(t, text)
		typ, id, _ := strings.Cut(name, "/")
		h.put(t, typ, id, text)
	}
	con := line("Condition", "con-1", ref("subject", "Patient/pat-1"), ref("asserter", "Practitioner/gp"))
	for _, text := range []string{patient(1), patient(2), patient(3), con, observation(2, 2), observation(3, 3),
		observation("shared", 2), line("Practitioner", "gp"), line("Practitioner", "old")} {
		put(text)
	}
	types := []string{"Condition", "Observation", "Patient", "Practitioner"}
	fx.wantBlocks(fx.run(organized(types...)), map[string][]string{
		"pat-1": {patient(1), con, line("Practitioner", "gp")}, "pat-2": {patient(2), observation(2, 2), observation("shared", 2)},
	})
	step := func() export.Request {
		request := organized(types...)
		request.After = h.now
		h.now = h.now.Add(time.Minute)
		return request
	}

	// Changes, a deletion, and somebody who joined.
	request := step()
	put(observation(2, 2, `,"status":"final"`))
	h.put(t, "Observation", "obs-shared", "")
	fx.people.members, fx.people.joined = members, map[string]time.Time{"pat-3": h.now}
	h.now = h.now.Add(time.Minute)
	got := fx.run(request)
	fx.wantBlocks(got, map[string][]string{
		"pat-2": {observation(2, 2, `,"status":"final"`)}, "pat-3": {patient(3), observation(3, 3)},
	})
	if len(got.deleted) != 1 || !strings.Contains(got.deleted[0], "Observation/obs-shared") {
		t.Errorf("deleted: %v", got.deleted)
	}

	// A referenced resource that changed, and then was deleted: only old data references it.
	request = step()
	put(line("Practitioner", "gp", `,"active":true`))
	h.now = h.now.Add(time.Minute)
	fx.people.joined = nil
	fx.wantBlocks(fx.run(request), map[string][]string{"pat-1": {line("Practitioner", "gp", `,"active":true`)}})
	request = step()
	h.put(t, "Practitioner", "gp", "")
	h.put(t, "Practitioner", "old", "")
	h.now = h.now.Add(time.Minute)
	got = fx.run(request)
	fx.wantBlocks(got, nil)
	if len(got.deleted) != 1 || !strings.Contains(got.deleted[0], "Practitioner/gp") || strings.Contains(got.deleted[0], "old") {
		t.Errorf("deleted: %v", got.deleted)
	}
}

func TestOrganizedRequestsOfOtherVersions(t *testing.T) {
	t.Parallel()
	src, _ := society(t)
	fx := newFixture(t, src, members...)
	for _, change := range []func(*export.Request){
		func(r *export.Request) { r.OrganizedBy = "Group" }, func(r *export.Request) { r.Associated = export.LatestProvenance },
	} {
		request := organized("Patient")
		change(&request)
		if got := fx.run(request); got.job.State != export.Failed || !strings.Contains(got.job.Failure, "cannot organize") {
			t.Errorf("%s: %s", got.job.State, got.job.Failure)
		}
	}
}

func TestCutOrganized(t *testing.T) {
	t.Parallel()
	sizes := source.Sizes{Patients: 2000, Types: map[string]source.TypeSize{
		"Patient": {Bytes: 1000}, "Observation": {Bytes: 9000}, "Practitioner": {Bytes: 500}, "ValueSet": {Bytes: 1 << 40},
	}}
	cfg := pipeline.Config{UnitBytes: 4000, UnitMost: 4000}
	cohort := export.Cohort{Chunks: 4, Patients: 2000}
	units := pipeline.Cut(organized("Flag", "Observation", "Patient", "Practitioner", "ValueSet"), false, sizes, cohort, cfg)
	var got []string
	for _, u := range units {
		if u.Types != "Observation,Patient,Practitioner" || !u.Organized() {
			t.Errorf("%+v", u)
		}
		got = append(got, fmt.Sprint(u.ID, u.Slice, u.Bytes))
	}
	if want := "organized-00000{0 1} 3333, organized-00001{1 2} 3333, organized-00002{2 4} 3333"; strings.Join(got, ", ") != want {
		t.Errorf("%q", got)
	}
	if units := pipeline.Cut(organized("ValueSet", "Flag"), false, sizes, cohort, cfg); len(units) != 0 {
		t.Errorf("%+v", units)
	}
}
