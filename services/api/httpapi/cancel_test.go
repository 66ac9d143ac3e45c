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

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// SPEC 5: a job in any state can be cancelled; it is gone at once, what works for it is told to stop, and its purge
// is queued (PITFALLS 15; 16 as far as the edge goes). The second DELETE is the 404.
func TestCancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	purges := make(chan export.JobID, 10)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	served := make(chan error, 1)
	go func() {
		served <- queue.Serve(ctx, queue.ServerConfig{
			URL: w.redisURL, Concurrency: 1, Drain: time.Second, Logger: slog.New(slog.DiscardHandler),
		}, queue.Handlers{
			Purge:  func(_ context.Context, id export.JobID) error { purges <- id; return nil },
			Upkeep: func(context.Context, string) error { return nil },
		})
	}()
	alice := w.as("alice")
	scheduled, running, completed, failed := w.kickoff(alice, ""), w.kickoff(alice, ""), w.kickoff(alice, ""),
		w.kickoff(alice, "")
	lease := w.claim(running, export.PlanUnit, export.KindPlan)
	w.run(completed, patients(1))
	if err := w.jobs.Fail(t.Context(), failed, "why", w.clock.Now(), w.clock.Now().Add(retention)); err != nil {
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
	w := newWorld(t)
	id := w.kickoff(w.as("alice"), "")
	w.queueDoor.Shut()
	if got := w.serve("DELETE", statusPath(id), w.as("alice")...); got.Code != http.StatusAccepted {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusNotFound {
		t.Errorf("afterwards: %d", got.code)
	}
	if !strings.Contains(w.log.String(), "enqueueing the purge of job "+string(id)) {
		t.Errorf("the log does not tell: %s", w.log)
	}
}

// Of several DELETEs at the same time one counts, and the others find the job gone.
func TestCancelRaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
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
		if count[http.StatusAccepted] != 1 || count[http.StatusNotFound] != 7 {
			t.Errorf("answers %v, want one 202 and seven 404", count)
		}
	}
}
