package httpapi_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// spec 5: a job in any state can be cancelled; it is gone at once, what works for it is told to stop, and its purge
// is queued (pitfall 15; 16 as far as the edge goes). The second DELETE is the 404.
func TestCancel(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	purges := make(chan export.JobID, 10)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	served := make(chan error, 1)
	go func() {
		served <- queue.Serve(ctx, queue.ServerConfig{
			URL: w.redisURL, Concurrency: 1, Drain: time.Second, Logger: slog.New(slog.DiscardHandler),
		}, queue.Handlers{
			Purge: func(_ context.Context, id export.JobID) error { purges <- id; return nil },
			Pass:  func(context.Context, string) error { return nil },
		})
	}()
	alice := w.as("alice")
	scheduled, running, completed, failed := w.kickoff(alice, ""), w.kickoff(alice, ""), w.kickoff(alice, ""),
		w.kickoff(alice, "")
	lease := w.claim(running, export.PlanUnit, export.KindPlan)
	w.run(completed, patients(1))
	if err := w.jobs.FailJob(t.Context(), failed, "why", w.clock.Now(), w.clock.Now().Add(retention)); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]export.JobID{
		"scheduled": scheduled, "running": running, "completed": completed, "failed": failed,
	} {
		got := w.ask("DELETE", statusPath(id), alice...)
		if got.code != http.StatusAccepted || got.body != "" {
			t.Errorf("%s: %d %q, want a bare 202", name, got.code, got.body)
		}
		wantOutcome(t, w.ask("GET", statusPath(id), alice...), http.StatusNotFound, "forbidden")
		wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")
		select {
		case purged := <-purges:
			if purged != id {
				t.Errorf("%s: the purge of %s is queued, want %s", name, purged, id)
			}
		case <-ctx.Done():
			t.Fatalf("%s: no purge is queued", name)
		}
	}
	if err := w.jobs.Heartbeat(t.Context(), lease); !errors.Is(err, export.ErrNotLive) {
		t.Errorf("the running unit's heartbeat: %v", err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A cancel counts once it is recorded: that the purge was not queued is for the log; the scheduler purges anyhow.
func TestCancelWithoutQueue(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.queueDoor.Shut()
	if got := w.serve("DELETE", statusPath(id), w.as("alice")...); got.Code != http.StatusAccepted {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusNotFound {
		t.Errorf("afterwards: %d", got.code)
	}
	if !strings.Contains(w.log.String(), "enqueue purge of job "+string(id)) {
		t.Errorf("the log lacks the error: %s", w.log)
	}
}

// A cancel that was done and not answered finds its own traces when the store repeats it: it counts, and the purge is
// queued. A job that expired in between is gone. (Lost ack.)
func TestCancelAnswerLost(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	loading := w.kickoff(alice, "") // of the script
	if got := w.ask("DELETE", statusPath(loading), alice...); got.code != http.StatusAccepted {
		t.Fatal(got.code)
	}
	id := w.kickoff(alice, "")
	before := w.purges()
	w.jobDoor.Lose(cancelWord, 1)
	if got := w.ask("DELETE", statusPath(id), alice...); got.code != http.StatusAccepted || got.body != "" {
		t.Errorf("%d %s", got.code, got.body)
	}
	if w.jobDoor.lose != 0 {
		t.Error("no answer was lost")
	}
	if after := w.purges(); after != before+1 {
		t.Errorf("%d purges are queued, want %d", after, before+1)
	}
	wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")

	expiring := w.kickoff(alice, "")
	w.run(expiring, patients(1))
	w.jobDoor.Before(cancelWord, func() {
		if err := w.direct().Expire(t.Context(), expiring, w.clock.Now()); err != nil {
			t.Error(err)
		}
	})
	wantOutcome(t, w.ask("DELETE", statusPath(expiring), alice...), http.StatusNotFound, "forbidden")
}

// cancelWord stands in the command that cancels a job, and in no other of the API.
const cancelWord = "\r\ncancelled\r\n"

// direct is the job store without a door.
func (w *fixture) direct() *jobstore.Store {
	w.t.Helper()
	jobs, err := jobstore.Open(w.redisURL, w.clock.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := jobs.Close(); err != nil {
			w.t.Errorf("closing the job store: %v", err)
		}
	})
	return jobs
}

// purges counts the purges that are queued.
func (w *fixture) purges() int {
	w.t.Helper()
	options, err := asynq.ParseRedisURI(w.redisURL)
	if err != nil {
		w.t.Fatal(err)
	}
	inspector := asynq.NewInspector(options)
	defer inspector.Close()
	queues, err := inspector.Queues()
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, name := range queues {
		tasks, err := inspector.ListPendingTasks(name)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, task := range tasks {
			if strings.Contains(task.Type, "purge") {
				n++
			}
		}
	}
	return n
}

// Of several DELETEs at the same time one counts. Of the others those that saw the job before it was gone get what they
// asked for, and the rest the 404.
func TestCancelRaces(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for range 5 {
		id := w.kickoff(alice, "")
		var racing sync.WaitGroup
		codes := make(chan int, 8)
		for range cap(codes) {
			racing.Go(func() { codes <- w.serve("DELETE", statusPath(id), alice...).Code })
		}
		racing.Wait()
		close(codes)
		count := map[int]int{}
		for code := range codes {
			count[code]++
		}
		if count[http.StatusAccepted] < 1 || count[http.StatusAccepted]+count[http.StatusNotFound] != 8 {
			t.Errorf("answers %v, want 202 at least once, and else 404", count)
		}
		wantOutcome(t, w.ask("DELETE", statusPath(id), alice...), http.StatusNotFound, "forbidden")
	}
}
