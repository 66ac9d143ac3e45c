package jobstore_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// running creates a job with three units, issued at fence 1.
func running(t *testing.T, s *jobstore.Store, c *testenv.Clock) export.JobID {
	t.Helper()
	id := create(t, s, c)
	plan := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
	must(t, s.Stage(t.Context(), plan, threeUnits))
	must(t, s.Commit(t.Context(), plan, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: c.Now()}, Next: seal}))
	issue(t, s, id, 10)
	return id
}

var seal = export.Unit{ID: export.SealUnit, Kind: export.KindSeal}

func issue(t *testing.T, s *jobstore.Store, id export.JobID, most int) []export.Lease {
	t.Helper()
	issued, err := s.Issue(t.Context(), id, most)
	must(t, err)
	return issued
}

// finish commits the unit at the fence.
func finish(t *testing.T, s *jobstore.Store, id export.JobID, unit export.Unit, fence int64) error {
	t.Helper()
	lease, err := s.Claim(t.Context(), id, unit.ID, unit.Kind, fence, "")
	if err != nil {
		return err
	}
	return s.Commit(t.Context(), lease, jobstore.Commit{Next: seal})
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestReopen(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := running(t, s, c)
		one, two, three := threeUnits[0], threeUnits[1], threeUnits[2]

		// A claimed unit: its worker's commit is refused.
		stuck := claim(t, s, id, one.ID, one.Kind, 1)
		again, err := s.Reopen(ctx, id, one.ID)
		must(t, err)
		if again.Fence != stuck.Fence+1 || again.Unit != one {
			t.Errorf("reopened as %+v", again)
		}
		wantErr(t, "heartbeat of the one before", s.Heartbeat(ctx, stuck), export.ErrFenced)
		wantErr(t, "commit of the one before", s.Commit(ctx, stuck, jobstore.Commit{Next: seal}), export.ErrFenced)
		must(t, finish(t, s, id, one, again.Fence))
		_, err = s.Reopen(ctx, id, one.ID)
		wantErr(t, "of one that is done", err, export.ErrConflict)

		// A unit that was given up is reopened with all its attempts.
		lease := claim(t, s, id, two.ID, two.Kind, 1)
		_, err = s.Release(ctx, lease, time.Hour, export.CauseError)
		must(t, err)
		must(t, s.GiveUp(ctx, id, two.ID, "it was given up", seal))
		must(t, s.GiveUp(ctx, id, two.ID, "it was given up", seal)) // an answer that was lost
		wantErr(t, "for another reason", s.GiveUp(ctx, id, two.ID, "because", seal), export.ErrConflict)
		again, err = s.Reopen(ctx, id, two.ID)
		must(t, err)
		retried, err := s.Claim(ctx, id, two.ID, two.Kind, again.Fence, "")
		must(t, err)
		if retried.Failures != 0 {
			t.Errorf("%d attempts are used up", retried.Failures)
		}
		must(t, s.Commit(ctx, retried, jobstore.Commit{Next: seal}))

		// The last unit is given up, which issues the seal; until the seal is claimed the unit can be reopened.
		must(t, s.GiveUp(ctx, id, three.ID, "it was given up", seal))
		before := issue(t, s, id, 10)
		if len(before) != 1 || before[0].Unit.ID != export.SealUnit {
			t.Fatalf("issued %+v, want the seal", before)
		}
		again, err = s.Reopen(ctx, id, three.ID)
		must(t, err)
		_, err = s.Claim(ctx, id, export.SealUnit, export.KindSeal, before[0].Fence, "")
		wantErr(t, "the seal of before", err, export.ErrFenced)
		if issued := issue(t, s, id, 10); len(issued) != 0 {
			t.Errorf("issued %+v beside the unit that was reopened", issued)
		}
		// The seal was taken back. It can be neither retried nor given up before the unit is closed: the manifest would lack it.
		_, err = s.Reopen(ctx, id, export.SealUnit)
		wantErr(t, "a retry of the seal that was taken back", err, export.ErrConflict)
		wantErr(t, "giving it up", s.GiveUp(ctx, id, export.SealUnit, "x", seal), export.ErrConflict)
		must(t, finish(t, s, id, three, again.Fence))
		after := issue(t, s, id, 10)
		if len(after) != 1 || after[0].Unit.ID != export.SealUnit || after[0].Fence <= before[0].Fence {
			t.Fatalf("issued %+v, want the seal under a new fence", after)
		}
		last := claim(t, s, id, export.SealUnit, export.KindSeal, after[0].Fence)
		must(t, s.Commit(ctx, last, jobstore.Commit{Seal: &jobstore.Seal{Finished: c.Now(), Expires: c.Now().Add(time.Hour)}}))
		_, err = s.Reopen(ctx, id, three.ID)
		wantErr(t, "after the end", err, export.ErrNotLive)
		wantErr(t, "after the end", s.GiveUp(ctx, id, three.ID, "late", seal), export.ErrNotLive)
		job, err := s.Job(ctx, id)
		must(t, err)
		if job.State != export.Completed || job.Percent != 100 {
			t.Errorf("the job is %s at %d %%", job.State, job.Percent)
		}
	})
}

func TestReopenRefuses(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		_, err := s.Reopen(ctx, export.NewJobID(), export.PlanUnit)
		wantErr(t, "of no job", err, export.ErrNotFound)
		id := create(t, s, c)
		plan := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		must(t, s.Stage(ctx, plan, threeUnits))
		_, err = s.Reopen(ctx, id, threeUnits[0].ID)
		wantErr(t, "of a unit that is only cut", err, export.ErrNotFound)
		wantErr(t, "of a unit that is only cut", s.GiveUp(ctx, id, threeUnits[0].ID, "x", seal), export.ErrNotFound)
		must(t, s.Commit(ctx, plan, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: c.Now()}, Next: seal}))
		_, err = s.Reopen(ctx, id, threeUnits[0].ID)
		wantErr(t, "of one that waits", err, export.ErrConflict)
		_, err = s.Reopen(ctx, id, "Nothing-00000")
		wantErr(t, "of no unit", err, export.ErrNotFound)

		// A later stage has begun.
		for _, unit := range threeUnits {
			must(t, s.GiveUp(ctx, id, unit.ID, "x", export.Unit{ID: export.ReferencesUnit, Kind: export.KindResolveReferences}))
		}
		issue(t, s, id, 10)
		references := claim(t, s, id, export.ReferencesUnit, export.KindResolveReferences, 1)
		_, err = s.Reopen(ctx, id, threeUnits[0].ID)
		wantErr(t, "while references are followed", err, export.ErrConflict)
		if err == nil || !strings.Contains(err.Error(), "references") {
			t.Errorf("%v does not have the reason", err)
		}
		// The units that a lost attempt has staged must not become visible with another unit's commit.
		cut := export.Unit{ID: "Organization-00000", Kind: export.KindExportReferenced, Type: "Organization"}
		must(t, s.Stage(ctx, references, []export.Unit{cut}))
		_, err = s.Release(ctx, references, 0, export.CauseDraining)
		must(t, err)
		again, err := s.Reopen(ctx, id, threeUnits[0].ID)
		must(t, err)
		_, err = s.Reopen(ctx, id, export.ReferencesUnit)
		wantErr(t, "a retry of the references that were taken back", err, export.ErrConflict)
		next := export.Unit{ID: export.ReferencesUnit, Kind: export.KindResolveReferences}
		wantErr(t, "giving them up", s.GiveUp(ctx, id, export.ReferencesUnit, "x", seal), export.ErrConflict)
		lease := claim(t, s, id, threeUnits[0].ID, threeUnits[0].Kind, again.Fence)
		must(t, s.Commit(ctx, lease, jobstore.Commit{Next: next}))
		found, err := s.Inspect(ctx, id)
		must(t, err)
		if slices.ContainsFunc(found.Units, func(u jobstore.UnitStatus) bool { return u.Unit.ID == cut.ID }) {
			t.Error("a unit of a lost attempt has become visible")
		}
	})
}

// A retry and a commit of the same unit at the same time: one of them wins, and the job ends either way.
func TestReopenRacesACommit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		unit := threeUnits[0]
		outcomes := map[bool]int{}
		for range 30 {
			id := running(t, s, c)
			for _, other := range threeUnits[1:] {
				must(t, finish(t, s, id, other, 1))
			}
			lease := claim(t, s, id, unit.ID, unit.Kind, 1)
			var again export.Lease
			var retryErr, commitErr error
			var both sync.WaitGroup
			both.Go(func() { again, retryErr = s.Reopen(ctx, id, unit.ID) })
			both.Go(func() { commitErr = s.Commit(ctx, lease, jobstore.Commit{Next: seal}) })
			both.Wait()
			outcomes[retryErr == nil]++
			if retryErr == nil {
				wantErr(t, "the commit", commitErr, export.ErrFenced)
				must(t, finish(t, s, id, unit, again.Fence))
			} else {
				must(t, commitErr)
				wantErr(t, "the retry", retryErr, export.ErrConflict)
			}
			if issued := issue(t, s, id, 10); len(issued) != 1 || issued[0].Unit.ID != export.SealUnit {
				t.Fatalf("issued %+v, want the seal", issued)
			}
		}
		t.Logf("the retry came first %d times, the commit %d times", outcomes[true], outcomes[false])
	})
}

func TestInspect(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := running(t, s, c)
		file := export.File{Name: "Small.Small-00000.1.0.ndjson", Type: "Small", Count: 3, Bytes: 30}
		lease := claim(t, s, id, threeUnits[0].ID, export.KindExport, 1)
		must(t, s.Commit(ctx, lease, jobstore.Commit{Result: export.Result{Files: []export.File{file}}, Next: seal}))
		dead := claim(t, s, id, threeUnits[1].ID, export.KindExport, 1)
		c.Advance(time.Minute)
		lost := stale(t, s, id, 30*time.Second)
		if len(lost) != 2 {
			t.Fatalf("%+v", lost)
		}
		c.Advance(time.Second)
		found, err := s.Inspect(ctx, id)
		must(t, err)
		byID := map[export.UnitID]jobstore.UnitStatus{}
		for _, unit := range found.Units {
			byID[unit.Unit.ID] = unit
		}
		one, two := byID[threeUnits[0].ID], byID[threeUnits[1].ID]
		if len(byID) != 4 || !one.Closed || len(one.Result.Files) != 1 || one.Result.Files[0] != file {
			t.Errorf("%+v", found.Units)
		}
		if two.Closed || two.Claimed || two.Fence != dead.Fence+1 || two.Attempts != 1 || two.Cause != export.CauseLost ||
			!found.At.Equal(c.Now()) || found.At.Sub(two.Heard) != time.Second {
			t.Errorf("at %s: %+v", found.At, two)
		}
		_, err = s.Inspect(ctx, export.NewJobID())
		wantErr(t, "no job", err, export.ErrNotFound)
	})
}

func TestListJobs(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		live, ended := create(t, s, c), create(t, s, c)
		must(t, s.FailJob(ctx, ended, "why", c.Now(), c.Now().Add(time.Hour)))
		ids, more, err := s.ListJobs(ctx, 10)
		must(t, err)
		if len(ids) != 2 || more {
			t.Errorf("%v, more %v", ids, more)
		}
		records, err := s.Jobs(ctx, append(ids, export.NewJobID()))
		must(t, err)
		if len(records) != 2 || !slices.ContainsFunc(records, func(j export.Job) bool { return j.ID == live }) {
			t.Errorf("%+v", records)
		}
		create(t, s, c)
		if _, more, err = s.ListJobs(ctx, 1); err != nil || !more {
			t.Errorf("of two active jobs one is listed: more %v, %v", more, err)
		}
	})
}

func TestKickoffPause(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, _ *testenv.Clock, _ string) {
		ctx := t.Context()
		state := func(want bool, reason string) {
			t.Helper()
			pause, paused, err := s.KickoffsPaused(ctx)
			if err != nil || paused != want || pause.Reason != reason {
				t.Errorf("paused %v, %+v, %v; want paused %v, %q", paused, pause, err, want, reason)
			}
		}
		state(false, "")
		must(t, s.PauseKickoffs(ctx, jobstore.Pause{Reason: "one"}))
		state(true, "one")
		must(t, s.PauseKickoffs(ctx, jobstore.Pause{Reason: "two", Until: time.Now().Add(time.Hour)}))
		state(true, "two")
		must(t, s.ResumeKickoffs(ctx))
		must(t, s.ResumeKickoffs(ctx))
		state(false, "")
	})
}

func TestHealth(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, _ *testenv.Clock, _ string) {
		health, err := s.Health(t.Context())
		must(t, err)
		if health.Clock.IsZero() || health.Latency <= 0 {
			t.Errorf("%+v", health)
		}
	})
}
