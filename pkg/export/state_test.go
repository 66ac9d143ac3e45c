package export_test

import (
	"slices"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestEveryArrowOfTheStateMachine(t *testing.T) {
	// The arrows of the diagram in docs/state-machine.md.
	arrows := map[export.State][]export.State{
		export.Scheduled: {export.Planning, export.Failed, export.Cancelled},
		export.Planning:  {export.Running, export.Failed, export.Cancelled},
		export.Running:   {export.Sealing, export.Failed, export.Cancelled},
		export.Sealing:   {export.Completed, export.Failed, export.Cancelled},
		export.Completed: {export.Cancelled, export.Expired},
		export.Failed:    {export.Cancelled, export.Expired},
	}
	for _, from := range export.States() {
		for _, to := range export.States() {
			want := slices.Contains(arrows[from], to)
			if got := from.CanBecome(to); got != want {
				t.Errorf("%s to %s: allowed %v, want %v", from, to, got, want)
			}
			if got := slices.Contains(to.Before(), from); got != want {
				t.Errorf("%s before %s: %v, want %v", from, to, got, want)
			}
		}
	}
}

func TestVisibleIsDecidedByTheClock(t *testing.T) {
	expires := time.Date(2030, 1, 8, 12, 0, 0, 0, time.UTC)
	job := export.Job{State: export.Completed, Expires: expires}
	for _, row := range []struct {
		state export.State
		now   time.Time
		want  bool
	}{
		{export.Completed, expires.Add(-time.Millisecond), true},
		{export.Completed, expires, false},
		{export.Failed, expires.Add(-time.Millisecond), true},
		{export.Failed, expires, false},
		{export.Cancelled, expires.Add(-time.Hour), false},
		{export.Expired, expires.Add(-time.Hour), false},
	} {
		job.State = row.state
		if got := job.Visible(row.now); got != row.want {
			t.Errorf("%s at %s: visible %v, want %v", row.state, row.now, got, row.want)
		}
	}
	if running := (export.Job{State: export.Running}); !running.Visible(expires) {
		t.Error("a running job has no expiry and is visible")
	}
}

func TestNextUnit(t *testing.T) {
	clinical := export.Request{Types: []string{"Observation", "Patient"}}
	full := export.Request{Types: []string{"Organization", "Patient"}}
	system := export.Request{Level: export.SystemLevel, Types: full.Types}
	associated := system
	associated.Associated = export.LatestProvenance
	for _, row := range []struct {
		name    string
		request export.Request
		closed  export.Kind
		empty   bool
		want    export.UnitID
	}{
		{"clinical types only", clinical, export.KindExport, false, export.SealUnit},
		{"clinical types only, plan", clinical, export.KindPlan, false, export.SealUnit},
		{"with referenced types", full, export.KindExport, false, export.ReferencesUnit},
		{"with referenced types, nothing planned", full, export.KindPlan, false, export.ReferencesUnit},
		{"empty cohort", full, export.KindPlan, true, export.SealUnit},
		{"references closed", full, export.KindResolveReferences, false, export.SealUnit},
		{"referenced closed", full, export.KindExportReferenced, false, export.SealUnit},
		{"associated data", associated, export.KindExport, false, export.ReferencesUnit},
		{"associated data, empty cohort", associated, export.KindPlan, true, export.SealUnit},
		{"associated closed", associated, export.KindExportAssociated, false, export.SealUnit},
		{"whole system", system, export.KindExport, false, export.SealUnit},
		{"sealed", full, export.KindSeal, false, ""},
	} {
		if got := row.request.Next(row.closed, row.empty).ID; got != row.want {
			t.Errorf("%s: next is %q, want %q", row.name, got, row.want)
		}
	}
}

func TestKeysLeadBackToTheirOrigin(t *testing.T) {
	job := export.NewJobID()
	name := export.FileName("Observation-00003", 7, "Observation", 2)
	for key, want := range map[string]export.Origin{
		export.FileKey(job, "Observation", name):                           {Job: job, Unit: "Observation-00003", Fence: 7},
		export.CohortPrefix(job, 2) + "000001":                             {Job: job, Unit: export.PlanUnit, Fence: 2, Scaffolding: true},
		export.ReferencesPrefix(job, "Claim-00000", 3) + "000001":          {Job: job, Unit: "Claim-00000", Fence: 3, Scaffolding: true},
		export.ManifestKey(job, 4):                                         {Job: job, Unit: export.SealUnit, Fence: 4},
		export.PackKey(job, export.PackName("Media-00001", 5, "Media", 0)): {Job: job, Unit: "Media-00001", Fence: 5},
		export.AskedKey(job):                                               {Job: job, Unit: export.PlanUnit, Scaffolding: true},
	} {
		got, ok := export.ParseKey(key)
		if !ok || got != want {
			t.Errorf("%s: %+v %v, want %+v", key, got, ok, want)
		}
	}
	for _, key := range []string{
		"", "jobs/", "jobs/x/y", "other/" + string(job) + "/_cohort/1/0", export.JobPrefix(job), export.JobPrefix(job) + "a",
		export.JobPrefix(job) + "Patient/Patient.u.x.0.ndjson.gz", export.JobPrefix(job) + "_manifest/+4.ndjson",
		export.JobPrefix(job) + "_cohort/02/x", export.AskedKey(job) + "/x", export.JobPrefix(job) + "_cohort/0/x", export.JobPrefix(job) + "_references/u.0/x",
		export.JobPrefix(job) + "_attachments/Media.u.1", export.JobPrefix(job) + "_attachments/x/Media.u.1.0",
		export.JobPrefix(job) + "Patient/x/Patient.u.1.0.ndjson.gz", export.JobPrefix(job) + "Patient/a.b.ndjson.gz",
	} {
		if origin, ok := export.ParseKey(key); ok {
			t.Errorf("%q was parsed as %+v", key, origin)
		}
	}
}

func TestJobIDs(t *testing.T) {
	seen := map[export.JobID]bool{}
	for range 1000 {
		id := export.NewJobID()
		if _, err := export.ParseJobID(string(id)); err != nil || seen[id] {
			t.Fatalf("%q: %v, seen before: %v", id, err, seen[id])
		}
		seen[id] = true
	}
}
