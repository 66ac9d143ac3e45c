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

// asked returns a job of the owner that is not yet recorded.
func asked(c *testenv.Clock, owner export.Owner, group string) export.Job {
	return export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: c.Now(), Owner: owner,
		Request: export.Request{
			URL: "https://x/fhir/Group/" + group + "/$export", GroupID: group, Types: []string{"Patient"}, Dialect: export.IG,
		},
	}
}

// start records the job under a limit of jobs for its owner.
func start(t *testing.T, s *jobstore.Store, job export.Job, limit int) {
	t.Helper()
	admission := jobstore.Admission{Limit: limit}
	for range 2 { // the answer may be lost, and the command repeated
		if id, err := s.Create(t.Context(), job, export.FirstUnit(), admission); err != nil || id != job.ID {
			t.Fatalf("create: %s, %v", id, err)
		}
	}
}

// wantFull checks that the owner is at the limit, and that the check records nothing.
func wantFull(t *testing.T, s *jobstore.Store, job export.Job, limit int, running ...export.JobID) {
	t.Helper()
	slices.Sort(running)
	admission := jobstore.Admission{Limit: limit}
	_, admitErr := s.Admit(t.Context(), job, admission)
	_, createErr := s.Create(t.Context(), job, export.FirstUnit(), admission)
	for _, err := range []error{admitErr, createErr} {
		var full jobstore.FullError
		if !errors.As(err, &full) {
			t.Fatalf("%v, want FullError", err)
		}
		slices.Sort(full.Running)
		if !slices.Equal(full.Running, running) {
			t.Errorf("live jobs %q, want %q", full.Running, running)
		}
	}
	if _, err := s.Job(t.Context(), job.ID); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a refused job is recorded: %v", err)
	}
}

func TestAnOwnerNeverHasMoreLiveJobsThanAllowed(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		const limit, callers = 5, 60
		other, err := jobstore.Open(url, c.Now) // another replica
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
					id, err := store.Create(t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: limit})
					var full jobstore.FullError
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
		must(t, s.Cancel(t.Context(), admitted[0], c.Now()))
		must(t, s.Cancel(t.Context(), admitted[3], c.Now()))
		storm()
		if len(admitted) != limit+2 {
			t.Errorf("%d admitted after two have ended, want %d", len(admitted), limit+2)
		}
	})
}

func TestEveryEndFreesThePlace(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		fail := func(id export.JobID) error { return s.FailJob(t.Context(), id, "why", c.Now(), c.Now()) }
		for name, end := range map[string]func(export.JobID) error{
			"cancelled": func(id export.JobID) error { return s.Cancel(t.Context(), id, c.Now()) },
			"failed":    fail,
			"expired":   func(id export.JobID) error { return errors.Join(fail(id), s.Expire(t.Context(), id, c.Now())) },
			"removed":   func(id export.JobID) error { return s.Remove(t.Context(), id) },
		} {
			owner := export.Owner{Issuer: "i", Subject: name}
			first := asked(c, owner, "g")
			start(t, s, first, 1)
			wantFull(t, s, asked(c, owner, "g"), 1, first.ID)
			c.Advance(time.Hour)
			wantFull(t, s, asked(c, owner, "g"), 1, first.ID)
			must(t, end(first.ID))
			start(t, s, asked(c, owner, "g"), 1)
		}
	})
}

// The previous release writes the entry of a job before its record: a young entry without a record counts, an old one does
// not.
func TestEntriesOfThePreviousRelease(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, url string) {
		pending := asked(c, somebody, "g")
		must(t, connect(t, url).ZAdd(t.Context(), "sluice:running:"+somebody.Key(),
			redis.Z{Score: float64(c.Now().UnixMilli()), Member: string(pending.ID) + " 0123456789abcdef"}).Err())
		c.Advance(59 * time.Second)
		wantFull(t, s, asked(c, somebody, "g"), 1, pending.ID)
		c.Advance(2 * time.Second)
		start(t, s, asked(c, somebody, "g"), 1)
	})
}

func TestOwnersAreCountedApart(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
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
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		join := jobstore.Admission{Limit: 5, Join: true}
		first := asked(c, somebody, "g")
		start(t, s, first, 5)
		want := func(what string, job export.Job, want export.JobID) {
			t.Helper()
			if id, err := s.Admit(t.Context(), job, join); err != nil || id != want {
				t.Errorf("%s: %s, %v; want %s", what, id, err, want)
			}
		}
		// Enqueueing may still fail, and the job would be removed.
		if id, err := s.Create(t.Context(), asked(c, somebody, "g"), export.FirstUnit(), join); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("while the first one is not queued: %s, %v", id, err)
		}
		must(t, s.Queued(t.Context(), first.ID))
		must(t, s.Queued(t.Context(), first.ID))
		want("an identical kick-off", asked(c, somebody, "g"), first.ID)
		for name, change := range map[string]func(*export.Job){
			"group": func(j *export.Job) { j.Request.GroupID = "h" },
			"url":   func(j *export.Job) { j.Request.URL += "?_type=Patient" },
			"types": func(j *export.Job) { j.Request.Types = []string{"Patient", "Observation"} },
			"level": func(j *export.Job) { j.Request.Level = export.PatientLevel },
			"list":  func(j *export.Job) { j.Request.Asked = &export.Asked{Key: export.AskedKey(j.ID), SHA256: "0f"} },
			"owner": func(j *export.Job) { j.Owner.Subject = "somebody else" },
		} {
			other := asked(c, somebody, "g")
			change(&other)
			want("another "+name, other, other.ID)
		}
		must(t, s.Cancel(t.Context(), first.ID, c.Now()))
		again := asked(c, somebody, "g")
		want("after the end of the first job", again, again.ID)
		if err := s.Queued(t.Context(), export.NewJobID()); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("a removed job was marked as queued: %v", err)
		}
		start(t, s, again, 5)
		// The API died before it marked the job as queued. A worker has claimed the plan, so it was queued.
		claim(t, s, again.ID, export.PlanUnit, export.KindPlan, 1)
		want("a planned job", asked(c, somebody, "g"), again.ID)
	})
}

// The list of patients of a kick-off counts by its content: its key names the job.
func TestKickOffsOfTheSamePatientsJoin(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		join := jobstore.Admission{Limit: 5, Join: true}
		of := func(digest string) export.Job {
			job := asked(c, somebody, "g")
			job.Request.Asked = &export.Asked{Key: export.AskedKey(job.ID), Patients: 1, SHA256: digest}
			return job
		}
		first := of("0a")
		start(t, s, first, 5)
		must(t, s.Queued(t.Context(), first.ID))
		if stored, err := s.Job(t.Context(), first.ID); err != nil || *stored.Request.Asked != *first.Request.Asked {
			t.Errorf("stored %+v, %v", stored.Request.Asked, err)
		}
		if id, err := s.Admit(t.Context(), of("0a"), join); err != nil || id != first.ID {
			t.Errorf("the same patients: %s, %v; want %s", id, err, first.ID)
		}
		other := of("0b")
		if id, err := s.Admit(t.Context(), other, join); err != nil || id != other.ID {
			t.Errorf("other patients: %s, %v; want %s", id, err, other.ID)
		}
	})
}

func TestIdenticalKickOffsAtOnceAreOneJob(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		const callers = 30
		var mu sync.Mutex
		ids, started := map[export.JobID]int{}, 0
		var group sync.WaitGroup
		for range callers {
			group.Go(func() {
				job := asked(c, somebody, "g")
				id, err := s.Create(t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: 5, Join: true})
				if err == nil && id == job.ID {
					err = s.Queued(t.Context(), job.ID)
					mu.Lock()
					started++
					mu.Unlock()
				}
				if err != nil {
					t.Errorf("create: %v", err)
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
			// Counters of unknown owners expire.
			for _, key := range allKeys(t, url) {
				if left := ttl(t, url, key); left <= 0 || left > window {
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
}

func TestManyLiveJobs(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		const limit = 120
		var last export.Job
		for range limit {
			last = asked(c, somebody, "g")
			start(t, s, last, limit)
			c.Advance(time.Millisecond)
		}
		must(t, s.Cancel(t.Context(), last.ID, c.Now()))
		start(t, s, asked(c, somebody, "g"), limit)
	})
}

// A refused step must not confirm a kick-off: the rescue could not remove its job.
func TestARefusedEndDoesNotConfirmAKickOff(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		job := asked(c, somebody, "g")
		start(t, s, job, 1)
		if err := s.Expire(t.Context(), job.ID, c.Now()); !errors.Is(err, export.ErrConflict) {
			t.Errorf("expire: %v, want ErrConflict", err)
		}
		if err := s.RemoveUnconfirmed(t.Context(), job.ID); err != nil {
			t.Error(err)
		}
	})
}
