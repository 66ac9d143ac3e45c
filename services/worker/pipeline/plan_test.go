package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

func TestAnEmptyCohortExportsNothing(t *testing.T) { // pitfall 1
	t.Parallel()
	for name, row := range map[string]struct {
		members  []string
		patients directory.NameList
	}{
		"an empty group":             {nil, directory.NameList{All: true}},
		"members who are not seen":   {members, directory.NameList{Names: []string{"pat-9"}}},
		"no access to patients":      {members, directory.NameList{}},
		"all members excepted":       {members, directory.NameList{All: true, Names: members}},
		"members with malformed ids": {[]string{"", "pat 1", "../pat-1", "pat-1\npat-9", strings.Repeat("p", 65)}, directory.NameList{All: true}},
	} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			all.leftOut = []export.LeftOut{{Type: "Observation", Reason: export.Malformed, Count: 1}}
			b := newFixture(t, all, row.members...)
			b.people.patients = row.patients
			got := b.export("Observation", "Patient", "Practitioner")
			got.wantLines(t)
			if len(got.files) != 0 {
				t.Errorf("files: %+v", got.files)
			}
			b.wantMetric(2, "sluice_worker_units_total") // plan and seal
		})
	}
}

func TestTheCohortIsTheMembersThatTheOwnerMaySee(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	b := newFixture(t, all, "pat-3", "pat-1", "pat-9", "pat-3", "pat-1", "pat-3") // an id may come twice
	b.people.patients = directory.NameList{All: true, Names: []string{"pat-9"}}
	got := b.export("Observation", "Patient")
	got.wantLines(t, patient(1), patient(3), observation(1, 1), observation(3, 3), observation(4, 3))
	if got.job.Cohort.Patients != 2 {
		t.Errorf("%d patients in the cohort", got.job.Cohort.Patients)
	}
	if want := instant.Truncate(time.Second); !got.job.Snapshot.Equal(want) {
		t.Errorf("snapshot %s, want %s (M-01)", got.job.Snapshot, want)
	}
}

// The members that the directory leaves out are in the result of the plan, whatever becomes of the others (pitfall 38).
func TestMembersThatAreLeftOut(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ members []string }{"some members": {members}, "no members": {nil}} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			fx := newFixture(t, all, row.members...)
			fx.people.leftOut = []export.LeftOut{
				{Reason: export.MemberByIdentifier, Count: 2}, {Reason: export.MemberGroup, Count: 1},
			}
			id := fx.kickOff("Patient")
			fx.finish(fx.worker(), id)
			found := false
			must(t, fx.jobs.Results(t.Context(), id, func(unit export.Unit, result export.Result) error {
				if unit.Kind == export.KindPlan {
					found = slices.Equal(result.LeftOut, fx.people.leftOut)
				}
				return nil
			}))
			if !found {
				t.Error("the result of the plan does not have them")
			}
		})
	}
}

// A grant may change between the plan's reads of it. The types and the patients that count are of one version.
func TestAGrantThatChangesDuringThePlan(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		changed directory.Grant
		lines   []string // none: the job fails
	}{
		"another group": {directory.Grant{Types: directory.Everything(), Groups: directory.Only("another")}, nil},
		"no types":      {directory.Grant{Groups: directory.Everything()}, nil},
		"nothing":       {directory.Grant{}, nil},
		"fewer types":   {directory.Grant{Types: directory.Only("Patient"), Groups: directory.Everything()}, []string{patient(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			fx := newFixture(t, all, "pat-1")
			id := fx.kickOff("Observation", "Patient")
			fx.people.changed = &row.changed
			got := fx.outcome(fx.finish(fx.worker(), id))
			if row.lines != nil {
				got.wantLines(t, row.lines...)
			} else if got.job.State != export.Failed || len(got.files) > 0 {
				t.Errorf("the job is %s, with files %+v", got.job.State, got.files)
			}
		})
	}
}

// The short list of the first read saves work: it never adds a patient, and one that it lacks has joined the grant since.
func TestBothReadsOfAGrantSelectThePatients(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	fx := newFixture(t, all, members...)
	few := directory.Only("pat-1", "pat-2")
	fx.people.grant.Few = &few
	fx.people.patients = directory.NameList{Names: []string{"pat-2", "pat-3"}}
	fx.export("Patient").wantLines(t, patient(2))
}

func TestAPermissionThatIsWithdrawnAfterTheKickoff(t *testing.T) {
	t.Parallel()
	for name, withdraw := range map[string]func(*people){
		"all":       func(p *people) { p.grant = directory.Grant{} },
		"the group": func(p *people) { p.grant.Groups = directory.AllBut(groupID) },
		"the types": func(p *people) { p.grant.Types = directory.Only("Encounter") },
	} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			b := newFixture(t, all, members...)
			id := b.kickOff("Observation", "Patient")
			withdraw(b.people)
			got := b.outcome(b.finish(b.worker(), id))
			want := "The export could not be done: the permission was withdrawn."
			if got.job.State != export.Failed || got.job.Failure != want {
				t.Errorf("the job is %s: %s", got.job.State, got.job.Failure)
			}
		})
	}
}

func TestATypeThatIsWithdrawnIsLeftOutAndReported(t *testing.T) {
	t.Parallel()
	lines := []string{
		`{"resourceType":"Patient","id":"pat-1","generalPractitioner":[{"reference":"Practitioner/a"}],` +
			`"managingOrganization":{"reference":"Organization/a"}}`,
		`{"resourceType":"Practitioner","id":"a"}`, `{"resourceType":"Organization","id":"a"}`, observation(1, 1),
	}
	b := newFixture(t, holding(t, lines...), members...)
	id := b.kickOff("Observation", "Organization", "Patient", "Practitioner")
	b.people.grant.Types = directory.AllBut("Observation", "Practitioner")
	got := b.outcome(b.finish(b.worker(), id))
	got.wantLines(t, lines[0], lines[2])
	got.wantIssues(t, "error", "Observation: the permission was withdrawn", "Practitioner: the permission was withdrawn")
}

func TestAGroupThatIsGone(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	b := newFixture(t, all, members...)
	b.people.err = fmt.Errorf("group: %w", directory.ErrNoGroup)
	got := b.export("Patient")
	if got.job.State != export.Failed || !strings.Contains(got.job.Failure, "the group can no longer be exported") {
		t.Errorf("the job is %s: %s", got.job.State, got.job.Failure)
	}
}

func TestAPlanThatCannotBeMadeFailsTheJob(t *testing.T) { // pitfall 7
	t.Parallel()
	all, _, _ := clinical(t)
	b := newFixture(t, all, members...)
	b.people.err = errors.New("the directory is down")
	got := b.export("Patient")
	if got.job.State != export.Failed || !strings.Contains(got.job.Failure, "in 3 attempts") {
		t.Errorf("the job is %s: %s", got.job.State, got.job.Failure)
	}
	b.wantMetric(2, "sluice_worker_units_total", "plan", "retried")
	b.wantMetric(1, "sluice_worker_units_total", "plan", "failed")
}

func TestWhatTheSourceLeavesOutIsTold(t *testing.T) { // pitfalls 10, 37, 39
	t.Parallel()
	for patients, numbers := range map[string][]string{"all": {"17", "3", "5"}, "some": {"some", "some", "some"}} {
		t.Run(patients, func(t *testing.T) {
			all, observations, _ := clinical(t)
			all.leftOut = []export.LeftOut{
				{Type: "Observation", Reason: export.UnresolvedPatient, Count: 17},
				{Type: "Condition", Reason: export.Malformed, Count: 1}, // not asked for
				{Reason: export.Malformed, Count: 3}, {Type: "Observation", Reason: export.NoPatient, Count: 5},
			}
			fx := newFixture(t, all, members...)
			if patients == "some" { // the numbers are of data that the owner may not see
				fx.people.patients = directory.NameList{All: true, Names: []string{"pat-9"}}
			}
			got := fx.export("Observation")
			got.wantLines(t, observations...)
			got.wantIssues(t, "", "information: "+numbers[1]+" left out: not readable as a FHIR resource.",
				"information: Observation: "+numbers[2]+" left out: not about a patient.",
				"warning: Observation: "+numbers[0]+" left out: the reference to the patient matches no resource, or several.")
			fx.wantMetric(17, "sluice_source_left_out", "Observation", "unresolved_patient")
		})
	}
}

func TestMembersThatTheDataDoesNotHaveAreTold(t *testing.T) { // pitfall 38
	t.Parallel()
	told := func(o outcome) bool {
		return slices.ContainsFunc(o.issues, func(issue fhir.Issue) bool {
			return issue.Severity == "warning" && issue.Diagnostics == "1 left out: members of the group, or requested patients, that the data does not have."
		})
	}
	all := holding(t, patient(1), patient(2), observation(1, 1))
	for _, row := range []struct {
		members, types []string
		want           bool
	}{
		{members, []string{"Patient", "Observation"}, true},      // pat-3
		{members[:2], []string{"Patient", "Observation"}, false}, // all are there
		{members, []string{"Observation"}, false},                // nobody looked
		{[]string{"ghost"}, []string{"Patient", "Observation"}, true},
	} {
		if got := told(newFixture(t, all, row.members...).export(row.types...)); got != row.want {
			t.Errorf("members %v, types %v: told %t", row.members, row.types, got)
		}
	}
	if !told(newFixture(t, holding(t, observation(1, 1)), "pat-1").export("Patient", "Observation")) {
		t.Error("not told about a member whose data has no Patient at all")
	}
}

func TestTypesThatTheStoreDoesNotHold(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	b := newFixture(t, all, members...)
	got := b.export("Encounter", "Flag")
	got.wantLines(t)
	got.wantIssues(t, "error")
	b.wantMetric(0, "sluice_worker_units_total", "export")
}

func TestCut(t *testing.T) {
	t.Parallel()
	size := func(bytes int64) source.TypeSize { return source.TypeSize{Resources: 1, Bytes: bytes} }
	sizes := source.Sizes{Patients: 1000, Types: map[string]source.TypeSize{
		"Patient": size(1000), "Observation": size(1_000_000), "Claim": size(0), "Organization": size(5),
		"Encounter": size(10_001),
	}}
	everybody := export.Cohort{Chunks: 10, Patients: 1000}
	half := export.Cohort{Chunks: 5, Patients: 500}
	for name, row := range map[string]struct {
		types     []string
		sizes     source.Sizes
		cohort    export.Cohort
		unitBytes int64
		units     int   // expected
		bytes     int64 // of each, expected
	}{
		"small type":             {[]string{"Patient"}, sizes, everybody, 1000, 1, 1000},
		"one byte too big":       {[]string{"Patient"}, sizes, everybody, 999, 2, 500},
		"by size":                {[]string{"Observation"}, sizes, everybody, 250_000, 4, 250_000},
		"never finer than chunk": {[]string{"Observation"}, sizes, everybody, 1, 10, 100_000},
		"a part of the patients": {[]string{"Observation"}, sizes, half, 250_000, 2, 250_000},
		"uneven":                 {[]string{"Observation"}, sizes, everybody, 334_000, 3, 333_333},
		"unknown size":           {[]string{"Claim"}, sizes, everybody, 1000, 1, 0},
		"none held":              {[]string{"Flag"}, sizes, everybody, 1000, 0, 0},
		"not known":              {[]string{"Goal"}, sizes, everybody, 1000, 0, 0},
		"travels along":          {[]string{"Organization"}, sizes, everybody, 1, 0, 0},
		"more members than held": {[]string{"Patient"}, sizes, export.Cohort{Chunks: 20, Patients: 2000}, 500, 2, 500},
		"no patients held": {
			[]string{"Observation"}, source.Sizes{Types: sizes.Types}, everybody, 500_000, 2, 500_000,
		},
		"a hundred terabytes": {
			[]string{"Observation"}, source.Sizes{Patients: 1e8, Types: map[string]source.TypeSize{"Observation": size(1e14)}},
			export.Cohort{Chunks: 25_000, Patients: 1e8}, 1 << 30, 25_000, 4e9,
		},
	} {
		t.Run(name, func(t *testing.T) {
			units := pipeline.Cut(export.Request{Types: row.types}, false, row.sizes, row.cohort,
				pipeline.Config{UnitBytes: row.unitBytes, UnitMost: row.unitBytes})
			if len(units) != row.units {
				t.Fatalf("%d units, want %d: %+v", len(units), row.units, units)
			}
			next := 0
			ids := map[export.UnitID]bool{}
			for _, unit := range units {
				if unit.Slice.From != next || unit.Slice.To <= unit.Slice.From || unit.Bytes != row.bytes ||
					unit.Kind != export.KindExport || unit.Type != row.types[0] || ids[unit.ID] {
					t.Errorf("unit %+v behind chunk %d, want %d bytes", unit, next, row.bytes)
				}
				ids[unit.ID] = true
				next = unit.Slice.To
			}
			if row.units > 0 && next != row.cohort.Chunks {
				t.Errorf("units end at chunk %d of %d", next, row.cohort.Chunks)
			}
		})
	}
	cfg := pipeline.Config{UnitBytes: 10_000, UnitMost: 10_000}
	if units := pipeline.Cut(export.Request{Types: []string{"Encounter", "Observation", "Patient"}}, false, sizes, everybody, cfg); len(units) != 2+10+1 {
		t.Errorf("%d units of three types", len(units))
	}
}

// TestUnitsGrowWithTheJob: a job has about a thousand units, none smaller or larger than configured.
func TestUnitsGrowWithTheJob(t *testing.T) { // spec 8, pitfall 6
	t.Parallel()
	for name, row := range map[string]struct{ total, units int64 }{
		"a gigabyte":        {1 << 30, 4},
		"up to the least":   {256 << 30, 1024},
		"a terabyte":        {1 << 40, 1024},
		"up to the most":    {8 << 40, 1024},
		"a hundred of them": {100 << 40, 12_800},
	} {
		sizes := source.Sizes{Patients: 1, Types: map[string]source.TypeSize{
			"Observation": {Resources: 1, Bytes: row.total / 4 * 3}, "Claim": {Resources: 1, Bytes: row.total / 4},
		}}
		units := pipeline.Cut(export.Request{Types: []string{"Observation", "Claim"}}, false, sizes, export.Cohort{Chunks: 1e6, Patients: 1},
			envconfig.Defaults[pipeline.Config]())
		if int64(len(units)) != row.units {
			t.Errorf("%s: %d units, want %d", name, len(units), row.units)
		}
	}
}

func TestTheLargestTypesComeFirstAndFewAtATime(t *testing.T) { // pitfall 25
	t.Parallel()
	b := newFixture(t, holding(t,
		patient(1), observation(1, 1), observation(2, 1), observation(3, 1), condition(1, 1),
		appointment(1, "pat-1"), appointment(2, "pat-1"),
	), members...)
	b.cfg.Outstanding = 2
	w := b.worker()
	id := b.kickOff("Appointment", "Condition", "Observation", "Patient")
	must(t, w.Handle(t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}))
	var order []string
	for {
		silent := b.stale(id, -time.Hour)
		if len(silent) == 0 || len(silent) > 2 {
			t.Fatalf("%d units are outstanding", len(silent))
		}
		slices.SortFunc(silent, func(a, b export.Lease) int { return int(b.Unit.Bytes - a.Unit.Bytes) })
		first := silent[0]
		if first.Unit.Kind != export.KindExport {
			break
		}
		order = append(order, first.Unit.Type)
		must(t, w.Handle(t.Context(), queue.Task{Kind: first.Unit.Kind, Job: id, Unit: first.Unit.ID, Fence: first.Fence}))
	}
	if want := []string{"Observation", "Appointment", "Condition", "Patient"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// Whoever can write to the bucket cannot widen the cohort between the plan and the units.
func TestAReplacedCohortIsRefused(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	fx := newFixture(t, all, members[:1]...)
	replaced := false
	done := fx.drive(fx.kickOff("Patient"), func(task queue.Task) {
		if task.Kind == export.KindExport && !replaced {
			replaced = true
			job, err := fx.jobs.Job(t.Context(), task.Job)
			must(t, err)
			chunk := fx.objects.Create(t.Context(), job.Cohort.Prefix+"chunk-000000", "text/plain")
			_, err = chunk.Write([]byte(strings.Join(members, "\n") + "\n"))
			must(t, err)
			_, err = chunk.Commit()
			must(t, err)
		}
		must(t, fx.worker().Handle(t.Context(), task))
	})
	if !replaced || done.State != export.Failed {
		t.Errorf("the job is %s (cohort replaced: %t), want it failed", done.State, replaced)
	}
}

// emptied is a source from which a load has deleted all resources of a type after the snapshot.
type emptied struct {
	source.Source
	types []string
}

func (e emptied) Sizes(ctx context.Context) (source.Sizes, error) {
	sizes, err := e.Source.Sizes(ctx)
	for _, typ := range e.types {
		sizes.Types[typ] = source.TypeSize{}
	}
	return sizes, err
}

func TestATypeThatWasEmptiedAfterTheSnapshotIsExported(t *testing.T) {
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, emptied{all, []string{"Observation", "Practitioner"}}, members...)
	fx.export(everyType...).wantLines(t, want...)
}

// folder is a source without versions.
type folder struct {
	source.Source
	identity string
}

func (f *folder) Sizes(ctx context.Context) (source.Sizes, error) {
	sizes, err := f.Source.Sizes(ctx)
	sizes.Identity = f.identity
	return sizes, err
}

// A folder may be replaced while a job waits: an export never mixes the data of two.
func TestDataThatIsReplacedAfterThePlanIsNotExported(t *testing.T) {
	t.Parallel()
	all, want := everything(t)
	src := &folder{all, "one"}
	fx := newFixture(t, src, members...)
	fx.export(everyType...).wantLines(t, want...)

	replaced := fx.drive(fx.kickOff(everyType...), func(task queue.Task) {
		src.identity = map[bool]string{true: "one", false: "two"}[task.Kind == export.KindPlan]
		must(t, fx.worker().Handle(t.Context(), task))
	})
	if replaced.State != export.Failed {
		t.Errorf("the job is %s, want it failed", replaced.State)
	}

	src.identity = "one"
	other := 0
	got := fx.drive(fx.kickOff(everyType...), func(task queue.Task) { // another worker has the data of the plan
		src.identity = "one"
		if task.Kind == export.KindExport && other == 0 {
			other++
			src.identity = "two"
		}
		must(t, fx.worker().Handle(t.Context(), task))
	})
	fx.outcome(got).wantLines(t, want...)
	fx.outcome(got).wantIssues(t, "error")
}
