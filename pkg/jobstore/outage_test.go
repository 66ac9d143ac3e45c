package jobstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

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
			lose := func(fence int64) (cut, fresh export.Lease) {
				t.Helper()
				cut = claim(t, s, id, "Large-00000", export.KindExport, fence)
				c.Advance(silence)
				lost := stale(t, s, id, silence)
				if len(lost) != 1 || lost[0].Fence != fence+1 {
					t.Fatalf("%s: lost %+v", name, lost)
				}
				return cut, lost[0]
			}
			dead, lost := lose(1)
			if lost.Failures != 1 {
				t.Errorf("%s: attempt %d after a loss", name, lost.Failures)
			}
			cut, _ := lose(2)
			for range 2 {
				if err := turnUp(cut); !errors.Is(err, export.ErrFenced) {
					t.Errorf("%s: %v, want ErrFenced", name, err)
				}
			}
			if err := turnUp(dead); !errors.Is(err, export.ErrFenced) { // of an earlier loss
				t.Errorf("%s: %v, want ErrFenced", name, err)
			}
			if again := claim(t, s, id, "Large-00000", export.KindExport, 3); again.Failures != 1 {
				t.Errorf("%s: attempt %d, want 1: the second loss was none", name, again.Failures)
			}
		}
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
			if fence, err := s.Release(ctx, lease, 0, export.CauseError); err != nil || fence != 2 {
				t.Errorf("fence %d, %v, want 2", fence, err)
			}
		}
		again := claim(t, s, id, export.PlanUnit, export.KindPlan, 2)
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
	_, statesErr := s.States(t.Context(), jobs)
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
