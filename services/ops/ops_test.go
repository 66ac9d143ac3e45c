package ops_test

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/ops"
)

// desk is an operator with a real Redis.
type desk struct {
	*ops.Operator
	t   *testing.T
	url string // of Redis
	now time.Time
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, now: time.Now().UTC().Truncate(time.Millisecond)}
	url := testenv.Redis(t)
	d.url = url
	jobs, err := jobstore.Open(url, nil)
	d.must(err)
	tasks, err := queue.Open(url)
	d.must(err)
	log, err := audit.Open(audit.Config{Path: filepath.Join(t.TempDir(), "audit"), Process: "test", Now: time.Now})
	d.must(err)
	t.Cleanup(func() { d.must(errors.Join(tasks.Close(), jobs.Close())) })
	t.Cleanup(func() { _ = log.Close() }) // a test may have closed it
	d.Operator = &ops.Operator{Jobs: jobs, Queue: tasks, Audit: log, Now: func() time.Time { return d.now }}
	return d
}

func (d *desk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// job creates a job of the subject with the given age.
func (d *desk) job(subject string, age time.Duration) export.JobID {
	d.t.Helper()
	return d.jobOf(subject, "g", age)
}

func (d *desk) jobOf(subject, group string, age time.Duration) export.JobID {
	d.t.Helper()
	id := export.NewJobID()
	_, err := d.Jobs.Create(d.t.Context(), export.Job{
		ID: id, State: export.Scheduled, Created: d.now.Add(-age), Owner: export.Owner{Issuer: "i", Subject: subject},
		Request: export.Request{GroupID: group, Types: []string{"Patient"}}, Key: []byte("wrapped"),
	}, export.FirstUnit(), jobstore.Admission{Limit: 100})
	d.must(err)
	return id
}

// units returns units of types and estimates.
func units(typesAndBytes ...any) (units []export.Unit) {
	for i := 0; i < len(typesAndBytes); i += 2 {
		typ, bytes := typesAndBytes[i].(string), typesAndBytes[i+1].(int)
		units = append(units, export.Unit{
			ID: export.UnitID(typ + "-00000"), Kind: export.KindExport, Type: typ, Bytes: int64(bytes),
		})
	}
	return units
}

// plan commits the plan of a new job with the units. None of them is in the queue.
func (d *desk) plan(id export.JobID, snapshot time.Time, units []export.Unit) {
	d.t.Helper()
	lease, err := d.Jobs.Claim(d.t.Context(), id, export.PlanUnit, export.KindPlan, 1, "")
	d.must(err)
	d.must(d.Jobs.Stage(d.t.Context(), lease, units))
	d.must(d.Jobs.Commit(d.t.Context(), lease, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: snapshot}}))
}

// sealing advances a job to its seal, and returns the lease of the seal unit.
func (d *desk) sealing(id export.JobID) export.Lease {
	d.t.Helper()
	ctx := d.t.Context()
	plan, err := d.Jobs.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, "")
	d.must(err)
	d.must(d.Jobs.Commit(ctx, plan, jobstore.Commit{
		Plan: &jobstore.Plan{Snapshot: d.now}, Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
	_, err = d.Jobs.Issue(ctx, id, 10)
	d.must(err)
	lease, err := d.Jobs.Claim(ctx, id, export.SealUnit, export.KindSeal, 1, "")
	d.must(err)
	return lease
}

func (d *desk) seal(lease export.Lease) error {
	return d.Jobs.Commit(d.t.Context(), lease, jobstore.Commit{
		Seal: &jobstore.Seal{Manifest: "m", Finished: d.now, Expires: d.now.Add(time.Hour)},
	})
}

// A cancel races with the seal. In either order, the job ends as cancelled and is due for its purge.
func TestCancelRacesTheSeal(t *testing.T) {
	d := newDesk(t)
	sealed := 0
	for n := range 30 {
		id := d.job("s", 0)
		lease := d.sealing(id)
		var cancelErr, sealErr error
		var both sync.WaitGroup
		both.Go(func() { cancelErr = d.Cancel(t.Context(), id) })
		both.Go(func() {
			time.Sleep(time.Duration(n) * 50 * time.Microsecond) // the cancel takes longer to reach its commit
			sealErr = d.seal(lease)
		})
		both.Wait()
		d.must(cancelErr)
		if sealErr == nil {
			sealed++
		} else if !errors.Is(sealErr, export.ErrNotLive) {
			t.Errorf("seal: %v", sealErr)
		}
		job, err := d.Jobs.Job(t.Context(), id)
		if err != nil || job.State != export.Cancelled {
			t.Errorf("the job is %s, %v", job.State, err)
		}
		if err := d.RetryUnit(t.Context(), id, export.SealUnit); !errors.Is(err, export.ErrNotLive) {
			t.Errorf("retry: %v", err)
		}
	}
	t.Logf("the seal came first in %d of 30 runs", sealed)
}

// A purge races with a cancel, and both are repeated.
func TestPurgeRacesACancel(t *testing.T) {
	d := newDesk(t)
	for range 20 {
		id := d.job("s", 0)
		if err := d.PurgeNow(t.Context(), id); !errors.Is(err, export.ErrConflict) || !strings.Contains(err.Error(), "cancel it") {
			t.Fatalf("purge of a job at work: %v", err)
		}
		d.must(d.seal(d.sealing(id)))
		var purgeErr, cancelErr error
		var both sync.WaitGroup
		both.Go(func() { purgeErr = d.PurgeNow(t.Context(), id) })
		both.Go(func() { cancelErr = d.Cancel(t.Context(), id) })
		both.Wait()
		d.must(purgeErr)
		d.must(d.PurgeNow(t.Context(), id))
		job, err := d.Jobs.Job(t.Context(), id)
		d.must(err)
		if job.Visible(d.now) || cancelErr != nil && !errors.Is(cancelErr, export.ErrConflict) {
			t.Errorf("the job is %s; cancel: %v", job.State, cancelErr)
		}
	}
	due, err := d.Jobs.Due(t.Context(), d.now, 0, 100)
	if err != nil || len(due) != 20 {
		t.Errorf("%d jobs are due, %v", len(due), err)
	}
}

func TestList(t *testing.T) {
	d := newDesk(t)
	var ids []export.JobID
	for n := range 5 {
		ids = append(ids, d.jobOf([]string{"alice", "bob"}[n%2], []string{"gut", "heart"}[n/3], time.Duration(n)*time.Hour))
	}
	d.plan(ids[3], d.now, units("Patient", 100, "Observation", 100))
	d.must(d.seal(d.sealing(ids[1])))
	d.must(d.Cancel(t.Context(), ids[2]))
	alice := export.Owner{Issuer: "i", Subject: "alice"}.Key()
	for name, tc := range map[string]struct {
		filter  ops.Filter
		want    []int
		matches int
	}{
		"all, the newest first": {ops.Filter{}, []int{0, 1, 2, 3, 4}, 5},
		"a page":                {ops.Filter{Offset: 1, Limit: 2}, []int{1, 2}, 5},
		"after the end":         {ops.Filter{Offset: 5}, nil, 5},
		"states":                {ops.Filter{States: []export.State{export.Completed, export.Cancelled}}, []int{1, 2}, 2},
		"an owner":              {ops.Filter{Owner: alice[:16]}, []int{0, 2, 4}, 3},
		"old ones":              {ops.Filter{Older: 150 * time.Minute}, []int{3, 4}, 2},
		"one by its beginning":  {ops.Filter{Job: string(ids[4][:6])}, []int{4}, 1},
		"a group":               {ops.Filter{Group: "hea"}, []int{3, 4}, 2},
		"young ones":            {ops.Filter{Younger: 90 * time.Minute}, []int{0, 1}, 2},
		"the longest first":     {ops.Filter{Sort: ops.Longest}, []int{4, 3, 0, 1, 2}, 5},
		"the busiest first":     {ops.Filter{Sort: ops.Busiest}, []int{3, 0, 4, 1, 2}, 5},
		"the busiest of a page": {ops.Filter{Sort: ops.Busiest, Offset: 1, Limit: 1}, []int{0}, 5},
		"old ones of an owner":  {ops.Filter{Older: 150 * time.Minute, Owner: alice, Limit: 1}, []int{4}, 1},
	} {
		page, err := d.List(t.Context(), tc.filter)
		d.must(err)
		good := len(page.Jobs) == len(tc.want) && page.Matches == tc.matches && page.States[export.Scheduled] == 2
		for i := range min(len(page.Jobs), len(tc.want)) {
			open := map[int]int64{0: 1, 3: 2, 4: 1}[tc.want[i]]
			good = good && page.Jobs[i].ID == ids[tc.want[i]] && page.Jobs[i].Open == open
		}
		if !good {
			t.Errorf("%s: %d of %d: %+v", name, len(page.Jobs), page.Matches, page)
		}
	}
}

// A change that cannot be recorded is not made.
func TestNothingIsChangedOffTheRecord(t *testing.T) {
	d := newDesk(t)
	id := d.job("s", 0)
	blind := &ops.Operator{Jobs: d.Jobs, Queue: d.Queue, Now: d.Now}
	closed := *d.Operator
	d.must(closed.Audit.Close())
	for name, o := range map[string]*ops.Operator{"without a log": blind, "with a log that is closed": &closed} {
		for what, step := range map[string]func() error{
			"cancel": func() error { return o.Cancel(t.Context(), id) },
			"purge":  func() error { return o.PurgeNow(t.Context(), id) },
			"retry":  func() error { return o.RetryUnit(t.Context(), id, export.PlanUnit) },
			"fail":   func() error { return o.GiveUpUnit(t.Context(), id, export.PlanUnit) },
			"pause":  func() error { return o.PauseKickoffs(t.Context(), "x", time.Time{}) },
			"drain":  func() error { return o.DrainWorker(t.Context(), "host:1") },
		} {
			if err := step(); err == nil {
				t.Errorf("%s %s was done", what, name)
			}
		}
	}
	detail, err := d.Inspect(t.Context(), id)
	d.must(err)
	if detail.State != export.Scheduled || detail.Units[0].Fence != 1 {
		t.Errorf("%+v", detail)
	}
	if kickoffs, err := d.Kickoffs(t.Context()); err != nil || !kickoffs.Open {
		t.Errorf("%+v, %v", kickoffs, err)
	}
}

func TestPauseRefuses(t *testing.T) {
	d := newDesk(t)
	if err := d.PauseKickoffs(t.Context(), "x", d.now); err == nil {
		t.Error("accepted a pause that ends in the past")
	}
	if err := d.PauseKickoffs(t.Context(), strings.Repeat("x", 201), time.Time{}); err == nil {
		t.Error("accepted a reason that is too long")
	}
	if err := d.RetryUnit(t.Context(), d.job("s", 0), "a/b"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("unit id with a slash: %v", err)
	}
}

// complete ends a job with a Patient unit and a cohort of three. The seal has a file of errors if there is anything for it.
func (d *desk) complete(result export.Result, errorFile bool) export.JobID {
	d.t.Helper()
	ctx, id := d.t.Context(), d.job("alice", time.Hour)
	lease, err := d.Jobs.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, "")
	d.must(err)
	d.must(d.Jobs.Stage(ctx, lease, units("Patient", 100)))
	d.must(d.Jobs.Commit(ctx, lease, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: d.now, Cohort: export.Cohort{Patients: 3}}}))
	_, err = d.Jobs.Issue(ctx, id, 10)
	d.must(err)
	lease, err = d.Jobs.Claim(ctx, id, "Patient-00000", export.KindExport, 1, "")
	d.must(err)
	d.must(d.Jobs.Commit(ctx, lease, jobstore.Commit{
		Result: result, Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
	_, err = d.Jobs.Issue(ctx, id, 10)
	d.must(err)
	lease, err = d.Jobs.Claim(ctx, id, export.SealUnit, export.KindSeal, 1, "")
	d.must(err)
	var files []export.File
	if errorFile {
		files = []export.File{{Name: "e", Type: "OperationOutcome", Error: true, Count: 1}}
	}
	d.must(d.Jobs.Commit(ctx, lease, jobstore.Commit{
		Result: export.Result{Files: files},
		Seal:   &jobstore.Seal{Manifest: "m", Finished: d.now, Expires: d.now.Add(time.Hour)},
	}))
	return id
}

// A completed job is incomplete if its error list has more than information.
func TestIncomplete(t *testing.T) {
	d := newDesk(t)
	found := func(n int64, left ...export.LeftOut) export.Result {
		return export.Result{Files: []export.File{{Name: "p", Type: "Patient", Count: n}}, LeftOut: left}
	}
	known := map[export.JobID]bool{}
	for name, tc := range map[string]struct {
		result           export.Result
		errors, expected bool
		left             int // entries of the list
	}{
		"nothing is left out":      {found(3), false, false, 0},
		"information":              {found(3, export.LeftOut{Type: "Patient", Reason: export.ForeignReference, Count: 2}), true, false, 1},
		"a warning":                {found(3, export.LeftOut{Type: "Patient", Reason: export.Malformed, Count: 2}), true, true, 1},
		"a member without Patient": {found(2), true, true, 1},
		"a failed unit":            {export.Result{Failure: "it broke"}, true, true, 0},
	} {
		jobs := []ops.Job{{ID: d.complete(tc.result, tc.errors), State: export.Completed}}
		for range 2 { // the second time from known
			d.must(d.MarkIncomplete(t.Context(), jobs, known))
			if jobs[0].Incomplete != tc.expected {
				t.Errorf("%s: incomplete %t", name, jobs[0].Incomplete)
			}
		}
		detail, err := d.Inspect(t.Context(), jobs[0].ID)
		d.must(err)
		if detail.Incomplete != tc.expected || len(detail.LeftOut) != tc.left {
			t.Errorf("%s: incomplete %t, left out %v", name, detail.Incomplete, detail.LeftOut)
		}
	}
	removed := []ops.Job{{ID: export.NewJobID(), State: export.Completed}}
	d.must(d.MarkIncomplete(t.Context(), removed, nil))
}
