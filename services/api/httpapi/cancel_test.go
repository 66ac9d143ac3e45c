package httpapi_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// spec 5: a job in any state can be cancelled; it is hidden at once, its running units stop, and its purge is queued
// (pitfalls 15, 16). The second DELETE gets 404.
func TestCancel(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	scheduled, running, completed, failed := w.kickoff(alice, ""), w.kickoff(alice, ""), w.kickoff(alice, ""),
		w.kickoff(alice, "")
	lease := w.claim(running, export.PlanUnit, export.KindPlan)
	w.run(completed, patients(1))
	w.fail(failed, "why")
	for name, id := range map[string]export.JobID{
		"scheduled": scheduled, "running": running, "completed": completed, "failed": failed,
	} {
		got := w.ask("DELETE", statusPath(id), alice...)
		if got.code != http.StatusAccepted || got.body != "" || !w.purges(id) {
			t.Errorf("%s: %d %q, purge queued: %t, want a bare 202 and a purge", name, got.code, got.body, w.purges(id))
		}
		wantOutcome(t, w.ask("GET", statusPath(id), alice...), http.StatusNotFound, "forbidden")
		wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")
	}
	if err := w.jobs.Heartbeat(t.Context(), lease); !errors.Is(err, export.ErrNotLive) {
		t.Errorf("the running unit's heartbeat: %v", err)
	}
}

// purges reports whether the purge of a job is queued.
func (w *fixture) purges(id export.JobID) bool {
	w.t.Helper()
	n, err := w.redis().Exists(w.t.Context(), "asynq:{upkeep}:t:purge:"+string(id)).Result()
	w.must(err)
	return n == 1
}

// A recorded cancel succeeds even if the purge could not be queued: the error is logged, and the scheduler purges.
func TestCancelWithoutQueue(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.queueDoor.Shut()
	if got := w.serve("DELETE", statusPath(id), w.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("%d %s", got.code, got.body)
	}
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusNotFound {
		t.Errorf("afterwards: %d", got.code)
	}
	if !strings.Contains(w.log.String(), "enqueue purge of job "+string(id)) {
		t.Errorf("the log lacks the error: %s", w.log.String())
	}
}

// If the answer to a cancel is lost, the store repeats the command: it succeeds, and the purge is queued. If the job
// expired meanwhile, the response is 404.
func TestCancelAnswerLost(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	loading := w.kickoff(alice, "") // of the script
	if got := w.ask("DELETE", statusPath(loading), alice...); got.code != http.StatusAccepted {
		t.Fatal(got.code)
	}
	id := w.kickoff(alice, "")
	w.jobDoor.Lose(cancelWord, 1)
	if got := w.ask("DELETE", statusPath(id), alice...); got.code != http.StatusAccepted || got.body != "" {
		t.Errorf("%d %s", got.code, got.body)
	}
	if w.jobDoor.lose != 0 {
		t.Error("no answer was lost")
	}
	if !w.purges(id) {
		t.Error("no purge is queued")
	}
	wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")

	expiring := w.kickoff(alice, "")
	w.run(expiring, patients(1))
	direct := w.direct()
	w.jobDoor.Before(cancelWord, func() {
		if err := direct.Expire(t.Context(), expiring, w.clock.Now()); err != nil {
			t.Error(err)
		}
	})
	wantOutcome(t, w.ask("DELETE", statusPath(expiring), alice...), http.StatusNotFound, "forbidden")
}

// cancelWord occurs in the command that cancels a job, and in no other command of the API.
const cancelWord = "\r\ncancelled\r\n"

// direct returns the job store, not through its door.
func (w *fixture) direct() *jobstore.Store {
	w.t.Helper()
	jobs, err := jobstore.Open(w.redisURL, w.clock.Now)
	w.must(err)
	w.t.Cleanup(func() { w.must(jobs.Close()) })
	return jobs
}

// Concurrent DELETEs: those that read the job before it was cancelled get 202, the rest get 404.
func TestCancelRaces(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for range 5 {
		id := w.kickoff(alice, "")
		var racing sync.WaitGroup
		codes := make(chan int, 8)
		for range cap(codes) {
			racing.Go(func() { codes <- w.serve("DELETE", statusPath(id), alice...).code })
		}
		racing.Wait()
		close(codes)
		count := map[int]int{}
		for code := range codes {
			count[code]++
		}
		if count[http.StatusAccepted] < 1 || count[http.StatusAccepted]+count[http.StatusNotFound] != 8 {
			t.Errorf("responses %v, want at least one 202, and 404 otherwise", count)
		}
		wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")
	}
}
