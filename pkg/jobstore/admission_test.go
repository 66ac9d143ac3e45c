package jobstore_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

var somebody = export.Owner{Issuer: "https://issuer.example", Subject: "somebody"}

// asked is a job of the owner that is not recorded yet.
func asked(c *clock, owner export.Owner, group string) export.Job {
	return export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: c.now(), Owner: owner,
		Request: export.Request{
			URL: "https://x/fhir/Group/" + group + "/$export", GroupID: group, Types: []string{"Patient"}, Dialect: export.IG,
		},
	}
}

// start admits the job and records it.
func start(t *testing.T, s *jobstore.Store, job export.Job, limit int) {
	t.Helper()
	if id, err := s.Admit(t.Context(), job, limit, false); err != nil || id != job.ID {
		t.Fatalf("admit: %s, %v", id, err)
	}
	must(t, s.Create(t.Context(), job, export.FirstUnit()))
}

func wantFull(t *testing.T, s *jobstore.Store, job export.Job, limit int, running ...export.JobID) {
	t.Helper()
	_, err := s.Admit(t.Context(), job, limit, false)
	var full jobstore.FullError
	if !errors.As(err, &full) {
		t.Fatalf("admit: %v, want that there is no place", err)
	}
	slices.Sort(full.Running)
	slices.Sort(running)
	if !slices.Equal(full.Running, running) {
		t.Errorf("at work %q, want %q", full.Running, running)
	}
}

func TestAnOwnerNeverHasMoreJobsAtWorkThanAllowed(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, url string) {
		const limit, callers = 5, 60
		other, err := jobstore.Open(url, c.now) // another replica
		must(t, err)
		defer other.Close()
		var mu sync.Mutex
		var admitted []export.JobID
		refused := 0
		storm := func() {
			var group sync.WaitGroup
			for i := range callers {
				store := []*jobstore.Store{s, other}[i%2]
				group.Go(func() {
					job := asked(c, somebody, "g")
					id, err := store.Admit(t.Context(), job, limit, false)
					var full jobstore.FullError
					if err == nil {
						err = store.Create(t.Context(), job, export.FirstUnit())
					}
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						admitted = append(admitted, id)
					case errors.As(err, &full) && len(full.Running) == limit:
						refused++
					default:
						t.Errorf("admit: %v", err)
					}
				})
			}
			group.Wait()
		}
		storm()
		if len(admitted) != limit || refused != callers-limit {
			t.Fatalf("%d admitted and %d refused, want %d and %d", len(admitted), refused, limit, callers-limit)
		}
		must(t, s.Cancel(t.Context(), admitted[0], c.now()))
		must(t, s.Cancel(t.Context(), admitted[3], c.now()))
		storm()
		if len(admitted) != limit+2 {
			t.Errorf("%d admitted after two have ended, want %d", len(admitted), limit+2)
		}
	})
}

func TestWhateverEndsAJobFreesItsPlace(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		for name, end := range map[string]func(export.JobID) error{
			"cancelled": func(id export.JobID) error { return s.Cancel(t.Context(), id, c.now()) },
			"failed":    func(id export.JobID) error { return s.Fail(t.Context(), id, "why", c.now(), c.now()) },
			"expired": func(id export.JobID) error {
				return errors.Join(s.Fail(t.Context(), id, "why", c.now(), c.now()), s.Expire(t.Context(), id, c.now()))
			},
			"withdrawn": func(id export.JobID) error { return s.Remove(t.Context(), id) },
		} {
			owner := export.Owner{Issuer: "i", Subject: name}
			first := asked(c, owner, "g")
			start(t, s, first, 1)
			wantFull(t, s, asked(c, owner, "g"), 1, first.ID)
			c.advance(time.Hour) // a record that is gone counts for a minute as one that is about to come
			wantFull(t, s, asked(c, owner, "g"), 1, first.ID)
			must(t, end(first.ID))
			start(t, s, asked(c, owner, "g"), 1)
		}
	})
}

func TestAKickOffThatDiedGivesItsPlaceBack(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		dead := asked(c, somebody, "g")
		for range 2 { // the answer may be lost, and the question repeated
			if id, err := s.Admit(t.Context(), dead, 1, false); err != nil || id != dead.ID {
				t.Fatalf("admit: %s, %v", id, err)
			}
		}
		wantFull(t, s, asked(c, somebody, "g"), 1, dead.ID)
		c.advance(59 * time.Second)
		wantFull(t, s, asked(c, somebody, "g"), 1, dead.ID)
		c.advance(2 * time.Second)
		next := asked(c, somebody, "g")
		start(t, s, next, 1)
		wantFull(t, s, asked(c, somebody, "g"), 1, next.ID)
	})
}

func TestWithdraw(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, url string) {
		job := asked(c, somebody, "g")
		_, err := s.Admit(t.Context(), job, 1, false)
		must(t, err)
		must(t, s.Withdraw(t.Context(), job))
		must(t, s.Withdraw(t.Context(), job))
		if keys := allKeys(t, url); len(keys) > 0 {
			t.Errorf("left in Redis: %v", keys)
		}
		start(t, s, asked(c, somebody, "g"), 1)
	})
}

func TestOwnersAreCountedApart(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		for _, owner := range []export.Owner{
			{Issuer: "a", Subject: "bc"}, {Issuer: "ab", Subject: "c"}, {Issuer: "1:a", Subject: "b"}, {Issuer: "a", Subject: "b"},
		} {
			start(t, s, asked(c, owner, "g"), 1)
			if wait, err := s.Allow(t.Context(), "x", owner, time.Minute, 1); err != nil || wait != 0 {
				t.Errorf("%+v waits %s, %v", owner, wait, err)
			}
		}
	})
}

func TestAnIdenticalKickOffJoins(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		first := asked(c, somebody, "g")
		start(t, s, first, 5)
		join := func(job export.Job) export.JobID {
			t.Helper()
			id, err := s.Admit(t.Context(), job, 5, true)
			must(t, err)
			return id
		}
		// It is recorded, and its enqueueing may still fail, after which it would be taken back.
		if id, err := s.Admit(t.Context(), asked(c, somebody, "g"), 5, true); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("while the first one is not queued: %s, %v", id, err)
		}
		must(t, s.Settle(t.Context(), first))
		if id := join(asked(c, somebody, "g")); id != first.ID {
			t.Errorf("an identical kick-off got %s, want the running %s", id, first.ID)
		}
		for name, change := range map[string]func(*export.Job){
			"group": func(j *export.Job) { j.Request.GroupID = "h" },
			"url":   func(j *export.Job) { j.Request.URL += "?_type=Patient" },
			"types": func(j *export.Job) { j.Request.Types = []string{"Patient", "Observation"} },
			"owner": func(j *export.Job) { j.Owner.Subject = "somebody else" },
		} {
			other := asked(c, somebody, "g")
			change(&other)
			if id := join(other); id != other.ID {
				t.Errorf("a kick-off with another %s got %s, want one of its own", name, id)
			}
		}
		must(t, s.Cancel(t.Context(), first.ID, c.now()))
		again := asked(c, somebody, "g")
		if id := join(again); id != again.ID {
			t.Errorf("after the end of the first job: %s, want a new one", id)
		}
		// A job that was taken back is not settled by an answer that comes late.
		must(t, s.Settle(t.Context(), first))
		// That one is being started: to name it could be to name a job that never comes.
		if id, err := s.Admit(t.Context(), asked(c, somebody, "g"), 5, true); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("while the identical one is being started: %s, %v", id, err)
		}
		// The API died before it could settle the job, and a worker has its plan: so it was queued.
		must(t, s.Create(t.Context(), again, export.FirstUnit()))
		claim(t, s, again.ID, export.PlanUnit, export.KindPlan, 1)
		if id := join(asked(c, somebody, "g")); id != again.ID {
			t.Errorf("a planned job: got %s, want %s", id, again.ID)
		}
	})
}

// Many identical kick-offs at the same time are one job.
func TestIdenticalKickOffsAtOnceAreOneJob(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		const callers = 30
		var mu sync.Mutex
		ids := map[export.JobID]int{}
		started := 0
		var group sync.WaitGroup
		for range callers {
			group.Go(func() {
				job := asked(c, somebody, "g")
				id, err := s.Admit(t.Context(), job, 5, true)
				if err == nil && id == job.ID {
					err = errors.Join(s.Create(t.Context(), job, export.FirstUnit()), s.Settle(t.Context(), job))
					mu.Lock()
					started++
					mu.Unlock()
				}
				if err != nil {
					t.Errorf("admit: %v", err)
				}
				mu.Lock()
				ids[id]++
				mu.Unlock()
			})
		}
		group.Wait()
		if len(ids) != 1 || started != 1 {
			t.Errorf("%d ids, %d jobs started, want one: %v", len(ids), started, ids)
		}
	})
}

func TestAllow(t *testing.T) {
	const window = time.Minute
	server := miniredis.RunT(t)
	for name, url := range map[string]string{"redis": testenv.Redis(t), "embedded": "redis://" + server.Addr()} {
		t.Run(name, func(t *testing.T) {
			s, err := jobstore.Open(url, nil)
			must(t, err)
			defer s.Close()
			for range 3 {
				if wait, err := s.Allow(t.Context(), "x", somebody, window, 3); err != nil || wait != 0 {
					t.Fatalf("allowed: %s, %v", wait, err)
				}
			}
			for range 5 {
				wait, err := s.Allow(t.Context(), "x", somebody, window, 3)
				if err != nil || wait <= 0 || wait > window {
					t.Fatalf("one too many: %s, %v", wait, err)
				}
			}
			if wait, err := s.Allow(t.Context(), "y", somebody, window, 3); err != nil || wait != 0 {
				t.Errorf("something else: %s, %v", wait, err)
			}
			// Nothing that a stranger can make Redis keep is kept for ever.
			options, err := redis.ParseURL(url)
			must(t, err)
			client := redis.NewClient(options)
			defer client.Close()
			for _, key := range allKeys(t, url) {
				if left := client.PTTL(t.Context(), key).Val(); left <= 0 || left > window {
					t.Errorf("%s lives for %s", key, left)
				}
			}
		})
	}
	s, err := jobstore.Open("redis://"+server.Addr(), nil)
	must(t, err)
	defer s.Close()
	server.FastForward(window)
	if wait, err := s.Allow(t.Context(), "x", somebody, window, 3); err != nil || wait != 0 {
		t.Errorf("after the wait: %s, %v", wait, err)
	}
	server.SetError("LOADING")
	if _, err := s.Allow(t.Context(), "x", somebody, window, 3); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	if _, err := s.Admit(t.Context(), export.Job{ID: export.NewJobID(), Owner: somebody}, 1, false); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
}

// However large the limit is, whoever has ended is found.
func TestManyJobsAtWork(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *clock, _ string) {
		const limit = 120
		var last export.Job
		for range limit {
			last = asked(c, somebody, "g")
			start(t, s, last, limit)
			c.advance(time.Millisecond)
		}
		must(t, s.Cancel(t.Context(), last.ID, c.now()))
		start(t, s, asked(c, somebody, "g"), limit)
	})
}
