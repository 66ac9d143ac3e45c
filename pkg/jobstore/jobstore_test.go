package jobstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func newClock() *testenv.Clock {
	return testenv.NewClock(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC))
}

// overBoth runs the test on a real Redis and on the one that the standalone server embeds.
func overBoth(t *testing.T, test func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string)) {
	run := func(name string, url func(t *testing.T) string) {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			address := url(t)
			s, err := jobstore.Open(address, c.Now)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			test(t, s, c, address)
		})
	}
	run("redis", func(t *testing.T) string { return testenv.Redis(t) })
	run("embedded", func(t *testing.T) string { return "redis://" + miniredis.RunT(t).Addr() })
}

// failures returns the attempts at the unit that have failed.
func failures(t *testing.T, s *jobstore.Store, id export.JobID, unit export.UnitID) int {
	t.Helper()
	found, err := s.Inspect(t.Context(), id)
	must(t, err)
	at := slices.IndexFunc(found.Units, func(status jobstore.UnitStatus) bool { return status.Unit.ID == unit })
	if at < 0 {
		t.Fatalf("the job has no unit %s", unit)
	}
	return found.Units[at].Attempts
}

func create(t *testing.T, s *jobstore.Store, c *testenv.Clock) export.JobID {
	t.Helper()
	job := export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: c.Now(),
		Owner:   export.Owner{Issuer: "https://issuer.example", Subject: "somebody"},
		Request: export.Request{URL: "https://x/fhir/Group/g/$export", GroupID: "g", Types: []string{"Patient"}, Dialect: export.IG},
	}
	record(t, s, job)
	got, err := s.Job(t.Context(), job.ID)
	must(t, err)
	if got.Owner != job.Owner || !got.Created.Equal(job.Created) || got.Request.URL != job.Request.URL ||
		!slices.Equal(got.Request.Types, job.Request.Types) || got.Request.Dialect != export.IG || got.State != export.Scheduled {
		t.Fatalf("read back %+v, want %+v", got, job)
	}
	return job.ID
}

// record creates the job under a high limit.
func record(t *testing.T, s *jobstore.Store, job export.Job) {
	t.Helper()
	id, err := s.Create(t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: 1000})
	must(t, err)
	if id != job.ID {
		t.Fatalf("created %s, want %s", id, job.ID)
	}
}

// stale returns both results of RescueStale as one list.
func stale(t *testing.T, s *jobstore.Store, id export.JobID, silence time.Duration) []export.Lease {
	t.Helper()
	lost, unclaimed, err := s.RescueStale(t.Context(), id, silence, 10)
	must(t, err)
	return append(lost, unclaimed...)
}

func claim(t *testing.T, s *jobstore.Store, id export.JobID, unit export.UnitID, kind export.Kind, fence int64) export.Lease {
	t.Helper()
	lease, err := s.Claim(t.Context(), id, unit, kind, fence, "")
	must(t, err)
	return lease
}

var threeUnits = []export.Unit{
	{ID: "Small-00000", Kind: export.KindExport, Type: "Small", Bytes: 10},
	{ID: "Large-00000", Kind: export.KindExport, Type: "Large", Bytes: 1000},
	{ID: "Middle-00000", Kind: export.KindExport, Type: "Middle", Bytes: 100},
}

var sealUnit = export.Unit{ID: export.SealUnit, Kind: export.KindSeal}

// planned returns a running job with three units, none issued.
func planned(t *testing.T, s *jobstore.Store, c *testenv.Clock) export.JobID {
	t.Helper()
	id := create(t, s, c)
	lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
	must(t, s.Stage(t.Context(), lease, threeUnits))
	must(t, s.Commit(t.Context(), lease, jobstore.Commit{Next: sealUnit, Plan: &jobstore.Plan{
		Snapshot: c.Now(), Cohort: export.Cohort{Prefix: "p/", Chunks: 1, Patients: 7},
	}}))
	return id
}

func TestAJobFromKickoffToSeal(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		job, err := s.Job(ctx, id)
		must(t, err)
		if job.State != export.Running || !job.Snapshot.Equal(c.Now()) || job.Cohort.Patients != 7 {
			t.Fatalf("after the plan: %+v", job)
		}
		first, err := s.Issue(ctx, id, 2)
		must(t, err)
		if len(first) != 2 || first[0].Unit.ID != "Large-00000" || first[1].Unit.ID != "Middle-00000" || first[0].Fence != 1 {
			t.Fatalf("issued %+v, want the two largest, the largest first", first)
		}
		none, err := s.Issue(ctx, id, 2)
		must(t, err)
		if len(none) != 0 {
			t.Fatalf("issued %+v although two are outstanding", none)
		}
		percent := 0
		for _, unit := range []export.UnitID{"Large-00000", "Middle-00000", "Small-00000"} {
			lease := claim(t, s, id, unit, export.KindExport, 1)
			must(t, s.Commit(ctx, lease, jobstore.Commit{
				Result: export.Result{Files: []export.File{{Name: string(unit) + ".ndjson", Count: 3}}}, Next: sealUnit,
			}))
			job, err = s.Job(ctx, id)
			must(t, err)
			if job.Percent < percent || job.Percent > 99 {
				t.Errorf("percent went from %d to %d before the seal (pitfall 14)", percent, job.Percent)
			}
			percent = job.Percent
			_, err = s.Issue(ctx, id, 2)
			must(t, err)
		}
		if percent != 99 {
			t.Errorf("percent is %d with all units done, want 99", percent)
		}
		lease := claim(t, s, id, export.SealUnit, export.KindSeal, 1)
		if job, err = s.Job(ctx, id); err != nil || job.State != export.Sealing {
			t.Fatalf("claimed seal: %+v %v", job, err)
		}
		expires := c.Now().Add(time.Hour)
		must(t, s.Commit(ctx, lease, jobstore.Commit{Seal: &jobstore.Seal{Manifest: "m", Finished: c.Now(), Expires: expires}}))
		job, err = s.Job(ctx, id)
		must(t, err)
		if job.State != export.Completed || job.Percent != 100 || job.Manifest != "m" || !job.Expires.Equal(expires) {
			t.Fatalf("sealed: %+v", job)
		}
		file, err := s.File(ctx, id, "Large-00000.ndjson")
		if err != nil || file.Count != 3 {
			t.Fatalf("file: %+v %v", file, err)
		}
		if _, err := s.File(ctx, id, "other.ndjson"); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("unknown file: %v", err)
		}
		var seen []export.UnitID
		must(t, s.Results(ctx, id, func(u export.Unit, _ export.Result) error { seen = append(seen, u.ID); return nil }))
		if want := []export.UnitID{"Large-00000", "Middle-00000", "Small-00000", "plan", "seal"}; !slices.Equal(seen, want) {
			t.Errorf("results of %v, want %v", seen, want)
		}
		if active, err := s.Active(ctx, 0, 10); err != nil || len(active) != 0 {
			t.Errorf("active after the seal: %v %v", active, err)
		}
		if due, err := s.Due(ctx, expires, 0, 10); err != nil || len(due) != 1 || due[0].ID != id {
			t.Errorf("due at expiry: %v %v", due, err)
		}
		if due, err := s.Due(ctx, expires.Add(-time.Millisecond), 0, 10); err != nil || len(due) != 0 {
			t.Errorf("due before expiry: %v %v", due, err)
		}
	})
}

func TestAUnitIsClaimedAndClosedOnce(t *testing.T) { // pitfall 28
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 10)
		must(t, err)

		var won atomic.Int64
		var group sync.WaitGroup
		var old export.Lease
		for range 16 { // the same task delivered sixteen times
			group.Go(func() {
				lease, err := s.Claim(ctx, id, "Large-00000", export.KindExport, 1, "")
				if err == nil {
					won.Add(1)
					old = lease
				} else if !errors.Is(err, export.ErrFenced) {
					t.Errorf("claim: %v", err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d claims won, want 1", won.Load())
		}

		c.Advance(time.Minute)
		lost, unclaimed, err := s.RescueStale(ctx, id, time.Second, 10)
		must(t, err)
		if len(lost) != 1 || lost[0].Unit.ID != "Large-00000" || lost[0].Fence != old.Fence+1 || lost[0].Failures != 1 ||
			len(unclaimed) != 2 {
			t.Errorf("lost %+v, unclaimed %+v", lost, unclaimed)
		}
		fresh := claim(t, s, id, "Large-00000", export.KindExport, lost[0].Fence)
		for name, step := range map[string]func() error{
			"heartbeat": func() error { return s.Heartbeat(ctx, old) },
			"commit":    func() error { return s.Commit(ctx, old, jobstore.Commit{Next: sealUnit}) },
			"release":   func() error { _, err := s.Release(ctx, old, 0, export.CauseError); return err },
			"claim":     func() error { _, err := s.Claim(ctx, id, old.Unit.ID, export.KindExport, 1, ""); return err },
			"the claim of an earlier release": func() error {
				_, err := s.Claim(ctx, id, old.Unit.ID, export.KindExport, old.Fence, "")
				return err
			},
		} {
			if err := step(); !errors.Is(err, export.ErrFenced) {
				t.Errorf("%s under a stale fence: %v, want ErrFenced", name, err)
			}
		}
		if got := failures(t, s, id, "Large-00000"); got != 0 {
			t.Errorf("%d attempts after the loss of a worker that turned up", got)
		}
		must(t, s.Heartbeat(ctx, fresh))
		must(t, s.Commit(ctx, fresh, jobstore.Commit{Next: sealUnit}))
		must(t, s.Commit(ctx, fresh, jobstore.Commit{Next: sealUnit})) // the first answer was lost
		other := jobstore.Commit{Result: export.Result{Withheld: 1}, Next: sealUnit}
		if err := s.Commit(ctx, fresh, other); !errors.Is(err, export.ErrFenced) {
			t.Errorf("second commit with another result: %v", err)
		}
		if err := s.Commit(ctx, old, jobstore.Commit{Next: sealUnit}); !errors.Is(err, export.ErrFenced) {
			t.Errorf("an equal result under a stale fence: %v", err)
		}
		if _, err := s.Claim(ctx, id, "Large-00000", export.KindExport, 2, ""); !errors.Is(err, export.ErrFenced) {
			t.Errorf("claim of a closed unit: %v", err)
		}
	})
}

func TestReleaseGivesANewFence(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 1)
		must(t, err)
		lease := claim(t, s, id, "Large-00000", export.KindExport, 1)
		fence, err := s.Release(ctx, lease, 0, export.CauseDraining) // handed back by a worker that stops
		must(t, err)
		lease = claim(t, s, id, "Large-00000", export.KindExport, fence)
		if lease.Failures != 0 {
			t.Errorf("handed back: attempt %d", lease.Failures)
		}
		fence, err = s.Release(ctx, lease, time.Minute, export.CauseError) // failed
		must(t, err)
		c.Advance(30 * time.Second)
		if units := stale(t, s, id, 20*time.Second); len(units) != 0 {
			t.Errorf("a unit that waits for its retry is not stale: %v", units)
		}
		if lease = claim(t, s, id, "Large-00000", export.KindExport, fence); lease.Failures != 1 {
			t.Errorf("attempt %d after a failure", lease.Failures)
		}
	})
}

func TestAPlanThatRunsAgainStartsOver(t *testing.T) { // pitfall 8
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		must(t, s.Stage(ctx, lease, threeUnits))
		if issued, err := s.Issue(ctx, id, 10); err != nil || len(issued) != 0 {
			t.Fatalf("units of an uncommitted plan were issued: %v %v", issued, err)
		}
		c.Advance(time.Minute)
		silent := stale(t, s, id, time.Second)
		if len(silent) != 1 || silent[0].Unit.Kind != export.KindPlan || silent[0].Fence != lease.Fence+1 {
			t.Fatalf("silent: %+v", silent)
		}
		again := claim(t, s, id, export.PlanUnit, export.KindPlan, silent[0].Fence)
		if err := s.Stage(ctx, lease, threeUnits); !errors.Is(err, export.ErrFenced) {
			t.Fatalf("stage under a stale fence: %v", err)
		}
		must(t, s.Stage(ctx, again, threeUnits[:1]))
		must(t, s.Commit(ctx, again, jobstore.Commit{Next: sealUnit, Plan: &jobstore.Plan{Snapshot: c.Now()}}))
		issued, err := s.Issue(ctx, id, 10)
		must(t, err)
		if len(issued) != 1 || issued[0].Unit.ID != "Small-00000" {
			t.Fatalf("issued %+v, want only what the second plan cut", issued)
		}
	})
}

func TestAnEmptyPlanGoesStraightToTheSeal(t *testing.T) { // pitfall 1
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		id := create(t, s, c)
		lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		must(t, s.Stage(t.Context(), lease, nil))
		must(t, s.Commit(t.Context(), lease, jobstore.Commit{Next: sealUnit, Plan: &jobstore.Plan{Snapshot: c.Now()}}))
		issued, err := s.Issue(t.Context(), id, 10)
		must(t, err)
		if len(issued) != 1 || issued[0].Unit.Kind != export.KindSeal {
			t.Fatalf("issued %+v, want the seal", issued)
		}
	})
}

func TestAnEndedJobStopsItsUnits(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 10)
		must(t, err)
		lease := claim(t, s, id, "Large-00000", export.KindExport, 1)
		must(t, s.Cancel(ctx, id, c.Now()))
		_, claimErr := s.Claim(ctx, id, "Small-00000", export.KindExport, 1, "")
		_, issueErr := s.Issue(ctx, id, 10)
		_, _, staleErr := s.RescueStale(ctx, id, 0, 10)
		for name, err := range map[string]error{
			"heartbeat": s.Heartbeat(ctx, lease), "claim": claimErr, "issue": issueErr, "rescue": staleErr,
			"commit": s.Commit(ctx, lease, jobstore.Commit{}), "stage": s.Stage(ctx, lease, threeUnits),
		} {
			if !errors.Is(err, export.ErrNotLive) {
				t.Errorf("%s on a cancelled job: %v", name, err)
			}
		}
		must(t, s.Cancel(ctx, id, c.Now())) // the first answer was lost
		if err := s.Cancel(ctx, export.NewJobID(), c.Now()); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("cancel of nothing: %v", err)
		}
		if due, err := s.Due(ctx, c.Now(), 0, 10); err != nil || len(due) != 1 {
			t.Errorf("a cancelled job is due at once: %v %v", due, err)
		}
	})
}

func TestEveryTransitionIsCheckedInRedis(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		if err := s.Expire(ctx, id, c.Now()); !errors.Is(err, export.ErrConflict) {
			t.Errorf("a scheduled job was expired: %v", err)
		}
		must(t, s.FailJob(ctx, id, "it broke", c.Now(), c.Now().Add(time.Hour)))
		if job, err := s.Job(ctx, id); err != nil || job.State != export.Failed || job.Failure != "it broke" {
			t.Errorf("failed: %+v %v", job, err)
		}
		must(t, s.FailJob(ctx, id, "again", c.Now(), c.Now()))
		if job, err := s.Job(ctx, id); err != nil || job.Failure != "it broke" {
			t.Errorf("failed twice: %+v %v", job, err)
		}
		must(t, s.Expire(ctx, id, c.Now()))
		must(t, s.Expire(ctx, id, c.Now()))
		if err := s.FailJob(ctx, id, "late", c.Now(), c.Now()); !errors.Is(err, export.ErrConflict) {
			t.Errorf("an expired job failed: %v", err)
		}
		if err := s.Cancel(ctx, id, c.Now()); !errors.Is(err, export.ErrConflict) {
			t.Errorf("an expired job was cancelled: %v", err)
		}
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		id := planned(t, s, c)
		_, err := s.Issue(t.Context(), id, 10)
		must(t, err)
		_, err = s.AllowPoll(t.Context(), id, time.Second, 1)
		must(t, err)
		must(t, s.Remove(t.Context(), id))
		must(t, s.Remove(t.Context(), id))
		mark := "sluice:{" + string(id) + "}:removed"
		if keys := allKeys(t, url); !slices.Equal(keys, []string{mark}) {
			t.Errorf("left in Redis: %v", keys)
		}
		if left := ttl(t, url, mark); left <= 0 || left > time.Hour {
			t.Errorf("the mark of the removal lives for %s", left)
		}
		// A create that is repeated after the removal must not record the job again.
		_, err = s.Create(t.Context(), export.Job{ID: id, State: export.Scheduled}, export.FirstUnit(), jobstore.Admission{Limit: 1})
		if !errors.Is(err, export.ErrConflict) {
			t.Errorf("create after the removal: %v", err)
		}
	})
}

func TestTheDataKeyGoesWithTheJob(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		wrapped := []byte{1, 0, 255, '\n', 0x80} // any bytes
		job := export.Job{ID: export.NewJobID(), State: export.Scheduled, Created: c.Now(), Key: wrapped,
			Owner: export.Owner{Issuer: "urn:issuer", Subject: "alice"}}
		record(t, s, job)
		got, err := s.Job(t.Context(), job.ID)
		must(t, err)
		key, owner, err := s.Key(t.Context(), job.ID)
		must(t, err)
		head, err := s.Head(t.Context(), job.ID)
		must(t, err)
		if owner != job.Owner || head.Owner != job.Owner || head.State != job.State {
			t.Errorf("read back the owner %+v and %+v", owner, head)
		}
		if !slices.Equal(got.Key, wrapped) || !slices.Equal(key, wrapped) {
			t.Errorf("read back %v and %v, want %v", got.Key, key, wrapped)
		}
		must(t, s.Remove(t.Context(), job.ID))
		if key, _, err := s.Key(t.Context(), job.ID); len(key) > 0 || !errors.Is(err, export.ErrNotFound) {
			t.Errorf("after the job is removed: %v, %v, want ErrNotFound", key, err)
		}
		// A job without a data key.
		if key, _, err := s.Key(t.Context(), create(t, s, c)); len(key) > 0 || err != nil {
			t.Errorf("a job without a key: %v, %v", key, err)
		}
	})
}

func TestPollLimit(t *testing.T) { // pitfall 29
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		id := create(t, s, c)
		for i := range 3 {
			if wait, err := s.AllowPoll(t.Context(), id, time.Minute, 3); err != nil || wait != 0 {
				t.Fatalf("poll %d: wait %s, %v", i, wait, err)
			}
		}
		wait, err := s.AllowPoll(t.Context(), id, time.Minute, 3)
		if err != nil || wait <= 0 || wait > time.Minute {
			t.Errorf("fourth poll: wait %s, %v", wait, err)
		}
	})
}

func TestAClientThatObeysIsNeverRefused(t *testing.T) { // pitfall 29
	// The window runs on the clock of the server: real time, or that of the embedded one.
	const window = 60 * time.Millisecond
	run := func(t *testing.T, url string, wait func()) {
		s, err := jobstore.Open(url, nil)
		must(t, err)
		defer s.Close()
		id := export.NewJobID()
		record(t, s, export.Job{ID: id, State: export.Scheduled, Created: time.Now(), Owner: export.Owner{Issuer: "i", Subject: "s"}})
		lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		for i := range 5 {
			if wait, err := s.AllowPoll(t.Context(), id, window, 1); err != nil || wait != 0 {
				t.Fatalf("poll %d after the announced wait: told to wait %s, %v", i, wait, err)
			}
			must(t, s.Stage(t.Context(), lease, nil)) // work on the job does not extend the window
			if told, err := s.AllowPoll(t.Context(), id, window, 1); err != nil || told <= 0 || told > window {
				t.Fatalf("a poll too many: told to wait %s, %v", told, err)
			}
			wait()
		}
	}
	t.Run("redis", func(t *testing.T) { run(t, testenv.Redis(t), func() { time.Sleep(window + 5*time.Millisecond) }) })
	t.Run("embedded", func(t *testing.T) {
		server := miniredis.RunT(t)
		run(t, "redis://"+server.Addr(), func() { server.FastForward(window) })
	})
}

func TestLeasesGoByTheServersClock(t *testing.T) { // a worker whose own clock is wrong must not lose its units
	for name, url := range map[string]string{"redis": testenv.Redis(t), "embedded": "redis://" + miniredis.RunT(t).Addr()} {
		t.Run(name, func(t *testing.T) {
			s, err := jobstore.Open(url, nil)
			must(t, err)
			defer s.Close()
			c := newClock() // years away from the server's
			id := create(t, s, c)
			lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
			must(t, s.Heartbeat(t.Context(), lease))
			if units := stale(t, s, id, time.Minute); len(units) != 0 {
				t.Errorf("a unit with a recent heartbeat is stale: %v", units)
			}
			if units := stale(t, s, id, -time.Minute); len(units) != 1 {
				t.Errorf("in a minute it is stale: %v", units)
			}
		})
	}
}

func TestRefence(t *testing.T) { // pitfall 26
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		fence, err := s.Refence(ctx, id, export.PlanUnit, 1)
		if err != nil || fence != 2 {
			t.Fatalf("refence: %d %v", fence, err)
		}
		if _, err := s.Refence(ctx, id, export.PlanUnit, 1); !errors.Is(err, export.ErrFenced) {
			t.Errorf("refence under a stale fence: %v", err)
		}
		if _, err := s.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, ""); !errors.Is(err, export.ErrFenced) {
			t.Errorf("claim under the old fence: %v", err)
		}
		claim(t, s, id, export.PlanUnit, export.KindPlan, 2)
		if _, err := s.Refence(ctx, id, export.PlanUnit, 2); !errors.Is(err, export.ErrFenced) {
			t.Errorf("refence of a claimed unit: %v", err)
		}
	})
}

func TestAStaleAttemptCannotFailTheJob(t *testing.T) { // pitfall 28
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		old := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		c.Advance(time.Minute)
		fresh := claim(t, s, id, export.PlanUnit, export.KindPlan, stale(t, s, id, time.Second)[0].Fence)
		if err := s.FailJobFrom(ctx, old, "why", c.Now(), c.Now()); !errors.Is(err, export.ErrFenced) {
			t.Errorf("a stale attempt failed the job: %v", err)
		}
		must(t, s.FailJobFrom(ctx, fresh, "why", c.Now(), c.Now().Add(time.Hour)))
		if job, err := s.Job(ctx, id); err != nil || job.State != export.Failed {
			t.Errorf("job: %s %v", job.State, err)
		}
	})
}

func TestManyUnitsAreStagedInPieces(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		var units []export.Unit
		for i := range 1234 {
			units = append(units, export.Unit{ID: export.UnitID(fmt.Sprintf("T-%05d", i)), Kind: export.KindExport, Bytes: int64(i)})
		}
		must(t, s.Stage(ctx, lease, units))
		must(t, s.Commit(ctx, lease, jobstore.Commit{Next: sealUnit, Plan: &jobstore.Plan{}}))
		var issued []export.Lease
		for len(issued) < len(units) { // in steps: the embedded Redis is slow, and a command may take 3 s
			more, err := s.Issue(ctx, id, len(issued)+200)
			must(t, err)
			if issued = append(issued, more...); len(more) == 0 {
				break
			}
		}
		if len(issued) != len(units) || issued[0].Unit.ID != "T-01233" {
			t.Errorf("issued %d units, the first %v", len(issued), issued[0].Unit.ID)
		}
	})
}

func TestRedisDownIsUnavailable(t *testing.T) {
	server := miniredis.RunT(t)
	s, err := jobstore.Open("redis://"+server.Addr(), time.Now)
	must(t, err)
	defer s.Close()
	server.Close()
	_, jobErr := s.Job(context.Background(), export.NewJobID())
	_, _, keyErr := s.Key(t.Context(), export.NewJobID())
	_, createErr := s.Create(t.Context(), export.Job{ID: export.NewJobID()}, export.FirstUnit(), jobstore.Admission{Limit: 1})
	for name, err := range map[string]error{
		"ping": s.Ping(t.Context()), "job": jobErr, "cancel": s.Cancel(t.Context(), export.NewJobID(), time.Now()),
		"create": createErr, "key": keyErr,
	} {
		if !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s: %v, want unavailable", name, err)
		}
	}
}

// A record always has its index entry, and every key of a job expires if no scheduler ever purges the job.
func TestIndexesAndSafetyTTL(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		ctx := t.Context()
		check := func(step string, active, due int) {
			t.Helper()
			live, err := s.Active(ctx, 0, 10)
			must(t, err)
			ended, err := s.Due(ctx, c.Now().Add(1000*time.Hour), 0, 10)
			must(t, err)
			if len(live) != active || len(ended) != due {
				t.Errorf("%s: active %v, due %v; want %d and %d", step, live, ended, active, due)
			}
			for _, key := range allKeys(t, url) {
				if strings.Contains(key, "{") && ttl(t, url, key) <= 24*time.Hour {
					t.Errorf("%s: %s lives for %s", step, key, ttl(t, url, key))
				}
			}
		}
		id := planned(t, s, c)
		check("planned", 1, 0)
		must(t, s.FailJob(ctx, id, "it broke", c.Now(), c.Now().Add(time.Hour)))
		check("failed", 0, 1)
		other := planned(t, s, c)
		check("another", 1, 1)
		must(t, s.Cancel(ctx, other, c.Now()))
		check("cancelled", 0, 2)
		must(t, s.Refile(ctx, other, c.Now())) // nothing to repair
		check("refiled", 0, 2)
	})
}

// Under the previous release an ended job may still be in the active index, and an entry may have no record.
func TestRefile(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		ctx := t.Context()
		ended, live, gone := create(t, s, c), create(t, s, c), export.NewJobID()
		must(t, s.Cancel(ctx, ended, c.Now()))
		client := connect(t, url)
		for _, id := range []export.JobID{ended, gone} {
			must(t, client.ZAdd(ctx, "sluice:jobs:active", redis.Z{Score: 1, Member: string(id)}).Err())
		}
		must(t, client.Del(ctx, "sluice:jobs:due").Err())
		for _, id := range []export.JobID{ended, live, gone} {
			must(t, s.Refile(ctx, id, c.Now()))
		}
		active, err := s.Active(ctx, 0, 10)
		must(t, err)
		due, err := s.Due(ctx, c.Now(), 0, 10)
		must(t, err)
		if len(active) != 1 || active[0].ID != live || len(due) != 1 || due[0].ID != ended {
			t.Errorf("active %v, due %v", active, due)
		}
	})
}

func TestCounts(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		entries := []jobstore.Entry{{ID: planned(t, s, c)}, {ID: export.NewJobID()}} // the second has no record
		states, _, err := s.States(t.Context(), entries)
		must(t, err)
		counts, err := s.Counts(t.Context(), entries)
		must(t, err)
		want := []jobstore.JobCounts{{Entry: entries[0], State: export.Running, Closed: 1, Open: 3}, {Entry: entries[1]}}
		if !slices.Equal(states, []export.State{export.Running, ""}) || !slices.Equal(counts, want) {
			t.Errorf("states %v, counts %+v, want %+v", states, counts, want)
		}
	})
}

func connect(t *testing.T, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	must(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func ttl(t *testing.T, url, key string) time.Duration {
	t.Helper()
	left, err := connect(t, url).PTTL(t.Context(), key).Result()
	must(t, err)
	return left
}

func allKeys(t *testing.T, url string) []string {
	t.Helper()
	keys, err := connect(t, url).Keys(t.Context(), "*").Result()
	must(t, err)
	return keys
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
