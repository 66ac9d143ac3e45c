package queue_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// waiting returns the counts of the named queue.
func waiting(t *testing.T, client *queue.Client, name string) queue.Waiting {
	t.Helper()
	all, err := client.Waiting(t.Context())
	must(t, err)
	found := slices.IndexFunc(all, func(w queue.Waiting) bool { return w.Queue == name })
	if found < 0 {
		t.Fatalf("no queue %q in %+v", name, all)
	}
	return all[found]
}

func TestWhatWaitsIsCounted(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		all, err := client.Waiting(t.Context())
		must(t, err)
		if len(all) != 4 {
			t.Errorf("an empty Redis: %+v", all)
		}
		for _, w := range all {
			if w.Pending+w.Active+w.Scheduled+w.Retry != 0 || w.Oldest != 0 {
				t.Errorf("an empty Redis: %+v", w)
			}
		}

		for _, unit := range []export.UnitID{"Claim-00001", "Claim-00002", "Claim-00003"} {
			must(t, client.EnqueueUnit(t.Context(), task(unit)))
		}
		short := task("Claim-00004")
		short.Short = true
		must(t, client.EnqueueUnit(t.Context(), short))
		later := task("Claim-00005")
		later.Delay = time.Hour
		must(t, client.EnqueueUnit(t.Context(), later))
		must(t, client.EnqueuePurge(t.Context(), "abcdefghijklmnopqrstuvwxyz"))

		got := waiting(t, client, bulk)
		if got.Pending != 3 || got.Active != 0 || got.Scheduled != 1 || got.Oldest <= 0 || !got.Units || !got.Long {
			t.Errorf("bulk: %+v", got)
		}
		if got := waiting(t, client, steering); got.Pending != 1 || got.Scheduled != 0 || !got.Units || got.Long {
			t.Errorf("steering: %+v", got)
		}
		if got := waiting(t, client, upkeep); got.Pending != 1 || got.Units {
			t.Errorf("upkeep: %+v", got)
		}

		release := make(chan struct{})
		taken := make(chan struct{}, 10)
		stop := serve(t, queue.ServerConfig{URL: url, Drain: time.Minute}, queue.Handlers{
			Unit: func(context.Context, queue.Task) error { taken <- struct{}{}; <-release; return nil },
		})
		next(t, taken)
		eventually(t, func() bool { return waiting(t, client, bulk).Active+waiting(t, client, steering).Active == 1 })
		eventually(t, func() bool {
			workers, err := client.Workers(t.Context())
			must(t, err)
			return workers.Alive == 1 && workers.Slots == 1
		})
		close(release)
		eventually(t, func() bool {
			w := waiting(t, client, bulk)
			return w.Pending+w.Active == 0 && w.Scheduled == 1 && w.Oldest == 0
		})
		stop()
		workers, err := client.Workers(t.Context())
		must(t, err)
		if workers != (queue.Workers{}) {
			t.Errorf("workers after the last has stopped: %+v", workers)
		}
	})
}

// A worker is busy while it runs a long unit, and does not count while it stops.
func TestBusyWorkersAreCounted(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		release := make(chan struct{})
		taken := make(chan struct{}, 1)
		must(t, client.EnqueueUnit(t.Context(), task("Claim-00001")))
		cancel, done := begin(t, queue.ServerConfig{URL: url, Drain: time.Minute}, queue.Handlers{
			Unit: func(context.Context, queue.Task) error { taken <- struct{}{}; <-release; return nil },
		})
		next(t, taken)
		eventually(t, func() bool {
			workers, err := client.Workers(t.Context())
			must(t, err)
			return workers == queue.Workers{Alive: 1, Busy: 1, Slots: 1}
		})
		cancel()
		eventually(t, func() bool {
			workers, err := client.Workers(t.Context())
			must(t, err)
			return workers == queue.Workers{} && waiting(t, client, bulk).Active == 1
		})
		close(release)
		must(t, <-done)
	})
}

// The age of the oldest task is found behind tasks at the head that have no pending_since.
func TestTheOldestIsFoundBehindWhatWasPutBack(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		must(t, client.EnqueueUnit(t.Context(), task("Claim-00001")))
		must(t, client.EnqueueUnit(t.Context(), task("Claim-00002")))
		options, err := redis.ParseURL(url)
		must(t, err)
		plain := redis.NewClient(options)
		defer func() { must(t, plain.Close()) }()
		since := func(unit, when string) {
			must(t, plain.HSet(t.Context(), "asynq:{bulk}:t:abcdefghijklmnopqrstuvwxyz:"+unit+":1", "pending_since", when).Err())
		}
		must(t, plain.HDel(t.Context(), "asynq:{bulk}:t:abcdefghijklmnopqrstuvwxyz:Claim-00001:1", "pending_since").Err())
		since("Claim-00002", "1000000000") // 1970
		if got := waiting(t, client, bulk); got.Pending != 2 || got.Oldest < 50*365*24*time.Hour {
			t.Errorf("got %+v", got)
		}
		since("Claim-00002", "no time")
		if _, err := client.Waiting(t.Context()); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("an invalid time: %v", err)
		}
	})
}

func TestWhatWaitsCannotBeCountedWithoutRedis(t *testing.T) {
	client := open(t, "redis://127.0.0.1:1")
	if _, err := client.Waiting(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := client.Workers(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// eventually waits until done returns true.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("timed out")
		case <-ticker.C:
		}
	}
}
