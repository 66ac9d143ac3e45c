package jobstore_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// sealed runs a job of the owner to its end, with a file of so many stored bytes.
func sealed(
	t testing.TB, s *jobstore.Store, c *testenv.Clock, owner export.Owner, stored int64, expires time.Time,
) export.JobID {
	t.Helper()
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	job, ctx := asked(c, owner, "g"), t.Context()
	_, err := s.Create(ctx, job, export.FirstUnit(), jobstore.Admission{Limit: 1 << 30})
	step(err)
	plan, err := s.Claim(ctx, job.ID, export.PlanUnit, export.KindPlan, 1, "w")
	step(err)
	step(s.Commit(ctx, plan, jobstore.Commit{Next: sealUnit, Plan: &jobstore.Plan{Snapshot: c.Now()}}))
	_, err = s.Issue(ctx, job.ID, 1)
	step(err)
	seal, err := s.Claim(ctx, job.ID, export.SealUnit, export.KindSeal, 1, "w")
	step(err)
	for range 2 { // the first answer may be lost
		step(s.Commit(ctx, seal, jobstore.Commit{
			Result: export.Result{Files: []export.File{{Name: "f", Stored: stored}}},
			Seal:   &jobstore.Seal{Manifest: "m", Finished: c.Now(), Expires: expires},
		}))
	}
	return job.ID
}

// An owner holds its finished jobs until they expire by the clock, are deleted or purged, each counted once.
func TestWhatAnOwnerHolds(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		other := export.Owner{Issuer: somebody.Issuer, Subject: "other"}
		holds := func(owner export.Owner, finished int, stored int64, first export.JobID) {
			t.Helper()
			held, err := s.Held(t.Context(), owner)
			must(t, err)
			if held.Finished != finished || held.Stored != stored || held.First != first {
				t.Errorf("%s holds %+v, want %d jobs of %d bytes, first %s", owner.Subject, held, finished, stored, first)
			}
		}
		later := func(d time.Duration) time.Time { return c.Now().Add(d) }
		holds(somebody, 0, 0, "")
		start(t, s, asked(c, somebody, "g"), 10)
		holds(somebody, 0, 0, "") // a live one
		a := sealed(t, s, c, somebody, 100, later(time.Hour))
		b := sealed(t, s, c, somebody, 20, later(2*time.Hour))
		d := sealed(t, s, c, somebody, 3, later(3*time.Hour))
		sealed(t, s, c, other, 7, later(time.Hour))
		holds(somebody, 3, 123, a)
		if held, err := s.Held(t.Context(), somebody); err != nil || !held.Expires.Equal(later(time.Hour)) {
			t.Errorf("the first expires %s, %v", held.Expires, err)
		}
		failed := asked(c, somebody, "g")
		start(t, s, failed, 10)
		for range 2 {
			must(t, s.FailJob(t.Context(), failed.ID, "why", c.Now(), later(4*time.Hour)))
		}
		holds(somebody, 4, 123, a) // it has no files
		for range 2 {
			must(t, s.Cancel(t.Context(), b, c.Now())) // deleted by its owner
		}
		must(t, s.Remove(t.Context(), b))
		holds(somebody, 3, 103, a)
		c.Advance(time.Hour) // by the clock, before a scheduler comes by
		holds(somebody, 2, 3, d)
		must(t, s.Expire(t.Context(), a, c.Now()))
		must(t, s.Remove(t.Context(), a))
		holds(somebody, 2, 3, d)
		must(t, s.Expire(t.Context(), d, c.Now())) // early, by an operator
		holds(somebody, 1, 0, failed.ID)
		must(t, s.Remove(t.Context(), failed.ID))
		holds(somebody, 0, 0, "")
		holds(other, 0, 0, "")
		for _, key := range []string{"sluice:finished:", "sluice:stored:"} {
			name := key + somebody.Key()
			if n := connect(t, url).Exists(t.Context(), name).Val(); n == 1 && ttl(t, url, name) <= 0 {
				t.Errorf("%s stays for ever", name)
			}
		}
	})
}

// New jobs are refused before Redis is full: what exists has to go on.
func TestRoom(t *testing.T) {
	embedded := miniredis.RunT(t)
	s, err := jobstore.Open("redis://"+embedded.Addr(), nil)
	must(t, err)
	defer s.Close()
	for info, full := range map[string]bool{
		"used_memory:1000\r\nmaxmemory:0\r\n": false, "used_memory:799\r\nmaxmemory:1000\r\n": false,
		"used_memory:800\r\nmaxmemory:1000\r\n": false, "used_memory:801\r\nmaxmemory:1000\r\n": true,
		"used_memory:1001\r\nmaxmemory:1000\r\n": true, "": false,
	} {
		embedded.Server().SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
			if cmd == "INFO" {
				peer.WriteBulk("# Memory\r\n" + info)
			}
			return cmd == "INFO"
		})
		if err := s.Room(t.Context()); errors.Is(err, export.ErrUnavailable) != full || err != nil && !full {
			t.Errorf("%q: %v, want full: %v", info, err, full)
		}
	}
	embedded.Server().SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INFO" {
			peer.WriteError("NOPERM no permission")
		}
		return cmd == "INFO"
	})
	if err := s.Room(t.Context()); err != nil {
		t.Errorf("a Redis that hides its memory: %v", err)
	}
	embedded.Close()
	if err := s.Room(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("Redis is down: %v", err)
	}
	actual, err := jobstore.Open(testenv.Redis(t), nil)
	must(t, err)
	defer actual.Close()
	must(t, actual.Room(t.Context()))
}

// The cost of the check does not depend on how many jobs an owner holds.
func BenchmarkHeld(b *testing.B) {
	url := testenv.Redis(b)
	c := newClock()
	s, err := jobstore.Open(url, c.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	options, err := redis.ParseURL(url)
	if err != nil {
		b.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	sealed(b, s, c, somebody, 1, c.Now().Add(time.Hour))
	held := 1
	for _, jobs := range []int{100, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(jobs), func(b *testing.B) {
			more := client.Pipeline() // what the scripts write when a job ends
			for ; held < jobs; held++ {
				id := string(export.NewJobID())
				more.ZAdd(b.Context(), "sluice:finished:"+somebody.Key(),
					redis.Z{Score: float64(c.Now().Add(time.Hour).UnixMilli()), Member: id})
				more.HSet(b.Context(), "sluice:stored:"+somebody.Key(), id, 1)
			}
			if _, err := more.Exec(b.Context()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if h, err := s.Held(b.Context(), somebody); err != nil || h.Finished != jobs {
					b.Fatal(h, err)
				}
			}
		})
	}
}
