package jobstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

const silence = 20 * time.Second

// watched advances the clock second by second, with a scheduler that reaches Redis.
func watched(t *testing.T, s *jobstore.Store, c *testenv.Clock, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= time.Second {
		c.Advance(time.Second)
		must(t, s.NoteReachable(t.Context()))
	}
}

func TestWorkersThatWereSilentWhileRedisWasAwayAreNotLost(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 10)
		must(t, err)
		must(t, s.NoteReachable(ctx))
		alive, dead := claim(t, s, id, "Large-00000", export.KindExport, 1), claim(t, s, id, "Small-00000", export.KindExport, 1)
		rescue := func() (lost []export.Lease) {
			t.Helper()
			lost, _, err := s.RescueStale(ctx, id, silence, 10)
			must(t, err)
			return lost
		}
		c.Advance(40 * time.Second) // the outage
		if lost := rescue(); len(lost) != 0 {
			t.Errorf("lost before the scheduler noted that Redis is back: %+v", lost)
		}
		must(t, s.NoteReachable(ctx))
		watched(t, s, c, silence-time.Second)
		must(t, s.Heartbeat(ctx, alive))
		if lost := rescue(); len(lost) != 0 {
			t.Errorf("lost before the silence was over: %+v", lost)
		}
		watched(t, s, c, time.Second)
		if lost := rescue(); len(lost) != 1 || lost[0].Unit.ID != dead.Unit.ID || lost[0].Failures != 1 {
			t.Errorf("lost %+v, want only the unit whose worker sent no heartbeat after the outage", lost)
		}
		watched(t, s, c, silence)
		if lost := rescue(); len(lost) != 1 || lost[0].Unit.ID != alive.Unit.ID {
			t.Errorf("lost %+v, want the unit whose worker died later", lost)
		}
	})
}

func TestALossIsNoAttemptWhenTheWorkerTurnsUp(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		for name, turnUp := range map[string]func(export.Lease) error{
			"heartbeat": func(lease export.Lease) error { return s.Heartbeat(ctx, lease) },
			"commit":    func(lease export.Lease) error { return s.Commit(ctx, lease, jobstore.Commit{Next: sealUnit}) },
			"release": func(lease export.Lease) error {
				_, err := s.Release(ctx, lease, 0, export.CauseError)
				return err
			},
		} {
			id := planned(t, s, c)
			_, err := s.Issue(ctx, id, 1)
			must(t, err)
			lose := func(fence int64) (cut, lost export.Lease) {
				t.Helper()
				cut = claim(t, s, id, "Large-00000", export.KindExport, fence)
				c.Advance(silence)
				silent := stale(t, s, id, silence)
				if len(silent) != 1 || silent[0].Fence != cut.Fence+1 {
					t.Fatalf("%s: lost %+v", name, silent)
				}
				return cut, silent[0]
			}
			dead, lost := lose(1)
			if lost.Failures != 1 {
				t.Errorf("%s: attempt %d after a loss", name, lost.Failures)
			}
			cut, lost := lose(lost.Fence)
			again := claim(t, s, id, "Large-00000", export.KindExport, lost.Fence)
			for _, lease := range []export.Lease{cut, cut, dead} { // dead is of an earlier loss
				if err := turnUp(lease); !errors.Is(err, export.ErrFenced) {
					t.Errorf("%s: %v, want ErrFenced", name, err)
				}
			}
			must(t, s.Heartbeat(ctx, again))
			if got := failures(t, s, id, "Large-00000"); got != 1 {
				t.Errorf("%s: %d attempts, want 1: the second loss was none", name, got)
			}
		}
	})
}

// A worker that was stopped for longer than the silence, such as by a suspended host, gets its unit back as long as no other
// worker has claimed it.
func TestAWorkerThatWasStoppedGetsItsUnitBack(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 1)
		must(t, err)
		lease := claim(t, s, id, "Large-00000", export.KindExport, 1)
		for range 20 {
			c.Advance(silence)
			lost := stale(t, s, id, silence)
			if len(lost) != 1 || lost[0].Failures != 1 {
				t.Fatalf("lost %+v", lost)
			}
			must(t, s.Heartbeat(ctx, lease))
			if _, err := s.Claim(ctx, id, "Large-00000", export.KindExport, lost[0].Fence, ""); !errors.Is(err, export.ErrFenced) {
				t.Fatalf("the rescue's task claims the unit: %v", err)
			}
		}
		c.Advance(silence)
		stale(t, s, id, silence)
		commit := jobstore.Commit{Next: sealUnit}
		must(t, s.Commit(ctx, lease, commit))
		must(t, s.Commit(ctx, lease, commit))
		if got := failures(t, s, id, "Large-00000"); got != 0 {
			t.Errorf("%d attempts, want 0", got)
		}
	})
}

// An earlier worker of the unit may turn up while a later one is taken for lost, too.
func TestALateWorkerDoesNotCostALaterOneItsUnit(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := planned(t, s, c)
		_, err := s.Issue(ctx, id, 1)
		must(t, err)
		first := claim(t, s, id, "Large-00000", export.KindExport, 1)
		c.Advance(silence)
		second := claim(t, s, id, "Large-00000", export.KindExport, stale(t, s, id, silence)[0].Fence)
		c.Advance(silence)
		stale(t, s, id, silence)
		for range 2 {
			if err := s.Heartbeat(ctx, first); !errors.Is(err, export.ErrFenced) {
				t.Errorf("the first worker: %v, want ErrFenced", err)
			}
			if got := failures(t, s, id, "Large-00000"); got != 1 {
				t.Errorf("%d attempts, want 1: the first loss was none", got)
			}
		}
		must(t, s.Commit(ctx, second, jobstore.Commit{Next: sealUnit}))
		if got := failures(t, s, id, "Large-00000"); got != 0 {
			t.Errorf("%d attempts, want 0", got)
		}
	})
}

// A unit may be what stops its workers: then their losses count, although they turn up.
func TestAUnitThatKeepsStoppingItsWorkersUsesUpItsAttempts(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		id := planned(t, s, c)
		_, err := s.Issue(t.Context(), id, 1)
		must(t, err)
		lease := claim(t, s, id, "Large-00000", export.KindExport, 1)
		for range 13 {
			c.Advance(silence)
			next := claim(t, s, id, "Large-00000", export.KindExport, stale(t, s, id, silence)[0].Fence)
			if err := s.Heartbeat(t.Context(), lease); !errors.Is(err, export.ErrFenced) {
				t.Fatal(err)
			}
			lease = next
		}
		if got := failures(t, s, id, "Large-00000"); got != 3 {
			t.Errorf("%d attempts, want 3", got)
		}
	})
}

// A promoted replica may lack the last writes, such as a claim, and give its task out again.
func TestTwoClaimsOfOneTaskNeverShareAFence(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		ctx := t.Context()
		id := create(t, s, c)
		first := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		options, err := redis.ParseURL(url)
		must(t, err)
		server := redis.NewClient(options)
		t.Cleanup(func() { _ = server.Close() })
		job := "sluice:{" + string(id) + "}:"
		must(t, server.HSet(ctx, job+"job", "state", "scheduled").Err())
		must(t, server.HSet(ctx, job+"fences", "plan", 1).Err())
		must(t, server.Del(ctx, job+"claims").Err())
		c.Advance(time.Millisecond)
		second := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		if first.Fence == second.Fence {
			t.Fatalf("both have the fence %d", first.Fence)
		}
		if err := s.Heartbeat(ctx, first); !errors.Is(err, export.ErrFenced) {
			t.Errorf("the heartbeat of the first: %v", err)
		}
		must(t, s.Heartbeat(ctx, second))
	})
}

// go-redis repeats a command whose answer does not come in time.
func TestARepeatedClaimIsTheCallersOwn(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		claim := func(token string) (export.Lease, error) {
			return s.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, token)
		}
		first, err := claim("mine")
		must(t, err)
		if again, err := claim("mine"); err != nil || again != first {
			t.Errorf("repeated: %+v, %v, want %+v", again, err, first)
		}
		for _, token := range []string{"other", ""} {
			if _, err := claim(token); !errors.Is(err, export.ErrFenced) {
				t.Errorf("another delivery with token %q: %v, want ErrFenced", token, err)
			}
		}
		c.Advance(silence)
		stale(t, s, id, silence)
		if _, err := claim("mine"); !errors.Is(err, export.ErrFenced) {
			t.Errorf("repeated after the unit was lost: %v, want ErrFenced", err)
		}
	})
}

func TestARepeatedReleaseReturnsTheSameFence(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id := create(t, s, c)
		lease := claim(t, s, id, export.PlanUnit, export.KindPlan, 1)
		for range 2 {
			if fence, err := s.Release(ctx, lease, 0, export.CauseError); err != nil || fence != lease.Fence+1 {
				t.Errorf("fence %d, %v, want %d", fence, err, lease.Fence+1)
			}
		}
		again := claim(t, s, id, export.PlanUnit, export.KindPlan, lease.Fence+1)
		if again.Failures != 1 {
			t.Errorf("%d attempts, want 1", again.Failures)
		}
		if _, err := s.Release(ctx, lease, 0, export.CauseError); !errors.Is(err, export.ErrFenced) {
			t.Errorf("after the unit was claimed again: %v, want ErrFenced", err)
		}
	})
}

// The sweep would delete the files of a job whose record reads as missing. The error of a pipeline is that of its first
// command, here of a job without a record.
func TestARefusedReadIsNotReadAsAMissingRecord(t *testing.T) {
	server := miniredis.RunT(t)
	s, err := jobstore.Open("redis://"+server.Addr(), nil)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	id := export.NewJobID()
	for _, name := range []string{"job", "fences", "results"} {
		must(t, server.Set("sluice:{"+string(id)+"}:"+name, "of another type"))
	}
	jobs := []jobstore.Entry{{ID: export.NewJobID()}, {ID: id}}
	_, _, statesErr := s.States(t.Context(), jobs)
	_, countsErr := s.Counts(t.Context(), jobs)
	_, publishedErr := s.Published(t.Context(), []export.Origin{
		{Job: jobs[0].ID, Unit: "a", Fence: 1}, {Job: id, Unit: "a", Fence: 1},
	})
	for name, err := range map[string]error{"states": statesErr, "counts": countsErr, "published": publishedErr} {
		if !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
}
