package queue_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Names on the wire never change: old and new processes run side by side.
const (
	steering = "steering"
	bulk     = "bulk"
	upkeep   = "upkeep"
)

// overBoth runs the test on a real Redis and on the one that the standalone server embeds.
func overBoth(t *testing.T, test func(t *testing.T, url string)) {
	for name, url := range map[string]func(t *testing.T) string{
		"redis":    func(t *testing.T) string { return testenv.Redis(t) },
		"embedded": func(t *testing.T) string { return "redis://" + miniredis.RunT(t).Addr() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait for intervals of Asynq
			test(t, url(t))
		})
	}
}

func open(t *testing.T, url string) *queue.Client {
	t.Helper()
	client, err := queue.Open(url)
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	return client
}

func inspect(t *testing.T, url string) *asynq.Inspector {
	t.Helper()
	opts, err := asynq.ParseRedisURI(url)
	must(t, err)
	inspector := asynq.NewInspector(opts)
	t.Cleanup(func() { must(t, inspector.Close()) })
	return inspector
}

// serve runs Serve in the background. The returned function stops it and waits.
func serve(t *testing.T, cfg queue.ServerConfig, handlers queue.Handlers) (stop func()) {
	t.Helper()
	cancel, done := begin(t, cfg, handlers)
	return func() {
		cancel()
		must(t, <-done)
	}
}

func begin(t *testing.T, cfg queue.ServerConfig, handlers queue.Handlers) (context.CancelFunc, <-chan error) {
	t.Helper()
	cfg.Logger = slog.New(slog.NewJSONHandler(io.Discard, nil))
	cfg.Concurrency = max(cfg.Concurrency, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- queue.Serve(ctx, cfg, handlers) }()
	return cancel, done
}

// collect returns a handler that sends each unit to the channel.
func collect() (func(context.Context, queue.Task) error, <-chan queue.Task) {
	tasks := make(chan queue.Task, 100)
	return func(_ context.Context, task queue.Task) error { tasks <- task; return nil }, tasks
}

func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func task(unit export.UnitID) queue.Task {
	return queue.Task{Kind: export.KindExport, Job: "abcdefghijklmnopqrstuvwxyz", Unit: unit, Fence: 1}
}

func TestATaskReachesItsHandler(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		handle, got := collect()
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{Unit: handle})()
		for i, kind := range []export.Kind{
			export.KindPlan, export.KindExport, export.KindResolveReferences, export.KindExportReferenced,
			export.KindExportAssociated, export.KindSeal,
		} {
			want := queue.Task{Kind: kind, Job: export.NewJobID(), Unit: "Claim-00001", Fence: int64(i) + 7}
			must(t, client.EnqueueUnit(t.Context(), want))
			if task := next(t, got); task != want {
				t.Errorf("got %+v, want %+v", task, want)
			}
		}
	})
}

func TestAnUnknownKindIsRefused(t *testing.T) {
	err := open(t, "redis://127.0.0.1:1").EnqueueUnit(t.Context(), queue.Task{Kind: "other", Unit: "u"})
	if err == nil || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestATaskEnqueuedTwiceRunsOnce(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		must(t, client.EnqueueUnit(t.Context(), task("a"))) // it is queued
		running := make(chan queue.Task)
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Unit: func(_ context.Context, task queue.Task) error { running <- task; return nil },
		})()
		if got := next(t, running); got.Unit != "a" {
			t.Fatalf("got %+v", got)
		}
		// The queue is first in, first out, and one task runs at a time: a duplicate would come before this one.
		must(t, client.EnqueueUnit(t.Context(), task("last")))
		if got := next(t, running); got.Unit != "last" {
			t.Errorf("got %+v, want the last", got)
		}
	})
}

func TestATaskThatRunsIsNotQueuedAgain(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		var units []export.UnitID
		done := make(chan struct{})
		stop := serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Unit: func(ctx context.Context, got queue.Task) error {
				units = append(units, got.Unit)
				if got.Unit == "last" {
					close(done)
					return nil
				}
				return errors.Join(client.EnqueueUnit(ctx, got), client.EnqueueUnit(ctx, task("last")))
			},
		})
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		next(t, done)
		stop()
		if len(units) != 2 {
			t.Errorf("ran %v", units)
		}
	})
}

func TestAnArchivedTaskDoesNotBlockItsID(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client, inspector := open(t, url), inspect(t, url)
		want := task("a")
		must(t, client.EnqueueUnit(t.Context(), want))
		pending, err := inspector.ListPendingTasks(bulk)
		must(t, err)
		if len(pending) != 1 {
			t.Fatalf("%d pending tasks", len(pending))
		}
		must(t, inspector.ArchiveTask(bulk, pending[0].ID))
		must(t, client.EnqueuePurge(t.Context(), want.Job))
		must(t, inspector.ArchiveTask(upkeep, "purge:"+string(want.Job)))

		must(t, client.EnqueueUnit(t.Context(), want))
		must(t, client.EnqueuePurge(t.Context(), want.Job))
		handle, got := collect()
		purged := make(chan export.JobID, 10)
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Unit:  handle,
			Purge: func(_ context.Context, id export.JobID) error { purged <- id; return nil },
			Pass:  func(context.Context, string) error { return nil },
		})()
		if task := next(t, got); task != want {
			t.Errorf("got %+v, want %+v", task, want)
		}
		if id := next(t, purged); id != want.Job {
			t.Errorf("purged %s, want %s", id, want.Job)
		}
	})
}

func TestADelayedTaskLetsOthersPass(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		late := task("late")
		late.Delay = time.Second
		must(t, client.EnqueueUnit(t.Context(), late))
		must(t, client.EnqueueUnit(t.Context(), task("soon")))
		handle, got := collect()
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{Unit: handle})()
		if first, second := next(t, got), next(t, got); first.Unit != "soon" || second.Unit != "late" {
			t.Errorf("order: %s, %s", first.Unit, second.Unit)
		}
	})
}

func TestAFailedTaskIsDeliveredAgain(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		got := make(chan queue.Task, 10)
		var calls atomic.Int64
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Unit: func(_ context.Context, task queue.Task) error {
				got <- task
				if calls.Add(1) == 1 {
					return errors.New("the outcome could not be recorded")
				}
				return nil
			},
		})()
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		if first, second := next(t, got), next(t, got); first != second || first != task("a") {
			t.Errorf("got %+v, then %+v", first, second)
		}
	})
}

func TestOneRunOfATickWhoeverTicks(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		duties := make(chan string, 100)
		stop := serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Purge: func(context.Context, export.JobID) error { return nil },
			Pass:  func(_ context.Context, duty string) error { duties <- duty; return errors.New("the pass failed") },
		})
		bucket := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
		var clients sync.WaitGroup
		for range 5 {
			client := open(t, url)
			clients.Go(func() {
				if err := client.EnqueuePass(t.Context(), "expire", bucket, time.Minute); err != nil {
					t.Error(err)
				}
			})
		}
		clients.Wait()
		if duty := next(t, duties); duty != "expire" {
			t.Errorf("duty %q", duty)
		}
		client := open(t, url)
		// The pass failed: it is neither enqueued again in its interval nor delivered again.
		must(t, client.EnqueuePass(t.Context(), "expire", bucket, time.Minute))
		// Another interval and another pass are other tasks; first in, first out.
		must(t, client.EnqueuePass(t.Context(), "rescue", bucket, time.Minute))
		must(t, client.EnqueuePass(t.Context(), "expire", bucket.Add(time.Minute), time.Minute))
		if second, third := next(t, duties), next(t, duties); second != "rescue" || third != "expire" {
			t.Errorf("then %q, %q", second, third)
		}
		stop()
		if len(duties) != 0 {
			t.Errorf("%d more runs", len(duties))
		}
	})
}

func TestAPurgeIsQueuedOnceAtATime(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		first, other := export.NewJobID(), export.NewJobID()
		must(t, client.EnqueuePurge(t.Context(), first))
		must(t, client.EnqueuePurge(t.Context(), first))
		must(t, client.EnqueuePurge(t.Context(), other))
		purged := make(chan export.JobID)
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{
			Purge: func(_ context.Context, id export.JobID) error { purged <- id; return nil },
			Pass:  func(context.Context, string) error { return nil },
		})()
		if a, b := next(t, purged), next(t, purged); a != first || b != other {
			t.Errorf("purged %s, %s; want %s, %s", a, b, first, other)
		}
	})
}

func TestAProcessTakesOnlyWhatItServes(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client, inspector := open(t, url), inspect(t, url)
		must(t, client.EnqueuePurge(t.Context(), export.NewJobID()))
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		handle, got := collect()
		stop := serve(t, queue.ServerConfig{URL: url}, queue.Handlers{Unit: handle})
		next(t, got)
		stop()
		if pending, err := inspector.ListPendingTasks(upkeep); err != nil || len(pending) != 1 {
			t.Errorf("a worker took upkeep: %v %v", pending, err)
		}
	})
}

func TestPayloadsAreSmallAndHoldIDsOnly(t *testing.T) {
	url := testenv.Redis(t)
	client, inspector := open(t, url), inspect(t, url)
	want := queue.Task{
		Kind: export.KindExportReferenced, Job: export.NewJobID(),
		Unit: "MedicinalProductUndesirableEffect-referenced", Fence: math.MaxInt64, Delay: time.Hour,
	}
	must(t, client.EnqueueUnit(t.Context(), want))
	scheduled, err := inspector.ListScheduledTasks(bulk)
	must(t, err)
	if len(scheduled) != 1 || len(scheduled[0].Payload) >= 1<<10 {
		t.Fatalf("scheduled: %+v", scheduled)
	}
	var message sluicev1.UnitTask
	must(t, proto.Unmarshal(scheduled[0].Payload, &message))
	ids := &sluicev1.UnitTask{
		JobId: string(want.Job), UnitId: string(want.Unit), Fence: want.Fence, Kind: string(want.Kind),
	}
	if !proto.Equal(&message, ids) {
		t.Errorf("payload %v, want %v", &message, ids)
	}
}

func TestSteeringAndBulkHaveQueuesOfTheirOwn(t *testing.T) { // pitfall 25
	url := testenv.Redis(t)
	client, inspector := open(t, url), inspect(t, url)
	for kind, queueName := range map[export.Kind]string{
		export.KindPlan: steering, export.KindResolveReferences: steering, export.KindSeal: steering,
		export.KindExport: bulk, export.KindExportReferenced: bulk, export.KindExportAssociated: bulk,
	} {
		unit := queue.Task{Kind: kind, Job: export.NewJobID(), Unit: "u", Fence: 1}
		must(t, client.EnqueueUnit(t.Context(), unit))
		info, err := inspector.GetTaskInfo(queueName, string(unit.Job)+":u:1")
		if err != nil {
			t.Errorf("%s is not in %s: %v", kind, queueName, err)
			continue
		}
		if info.Timeout <= 30*time.Minute { // Asynq's default would end a long unit
			t.Errorf("%s ends after %s", kind, info.Timeout)
		}
	}
}

func TestRedisDownIsUnavailable(t *testing.T) {
	server := miniredis.RunT(t)
	client := open(t, "redis://"+server.Addr())
	must(t, client.Ping(t.Context()))
	server.Close()
	for name, err := range map[string]error{
		"ping": client.Ping(t.Context()), "unit": client.EnqueueUnit(t.Context(), task("a")),
		"purge": client.EnqueuePurge(t.Context(), "a"), "tick": client.EnqueuePass(t.Context(), "a", time.Now(), time.Minute),
	} {
		if !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s: %v, want unavailable", name, err)
		}
	}
}

func TestPingEndsWithItsContext(t *testing.T) { // pitfall 34
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, testenv.Redis(t)).Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}

func TestABadURLIsRefusedWithoutQuotingIt(t *testing.T) {
	for _, url := range []string{"redis://:secret@host:port:port", "redis-sentinel://:secret@a,b?master=m", "secret"} {
		_, err := queue.Open(url)
		if err == nil || strings.Contains(err.Error(), url) || strings.Contains(err.Error(), ":secret") {
			t.Errorf("%q: %v", url, err)
		}
		err = queue.Serve(t.Context(), queue.ServerConfig{URL: url}, queue.Handlers{})
		if err == nil || strings.Contains(err.Error(), url) || strings.Contains(err.Error(), ":secret") {
			t.Errorf("serve %q: %v", url, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestShortUnitsDoNotWaitBehindLongOnes: the only slot for long units is taken, and more long units wait.
func TestShortUnitsDoNotWaitBehindLongOnes(t *testing.T) { // pitfall 25
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		running, got := make(chan queue.Task, 10), make(chan queue.Task, 10)
		finish := make(chan struct{})
		stop := serve(t, queue.ServerConfig{URL: url, Express: 1, Drain: time.Hour}, queue.Handlers{
			Unit: func(_ context.Context, task queue.Task) error {
				if task.Unit == "long" {
					running <- task
					<-finish
					return nil
				}
				got <- task
				return nil
			},
		})
		must(t, client.EnqueueUnit(t.Context(), task("long")))
		next(t, running)
		must(t, client.EnqueueUnit(t.Context(), task("long-too")))
		unit := export.Unit{ID: "short", Kind: export.KindExport, Bytes: export.ShortBytes}
		must(t, client.EnqueueUnit(t.Context(), queue.TaskOf(export.Lease{Job: "abcdefghijklmnopqrstuvwxyz", Unit: unit, Fence: 1})))
		must(t, client.EnqueueUnit(t.Context(), queue.TaskOf(export.Lease{Job: "abcdefghijklmnopqrstuvwxyz", Unit: export.FirstUnit(), Fence: 1})))
		if first, second := next(t, got), next(t, got); first.Unit != "short" || second.Unit != export.PlanUnit {
			t.Errorf("ran %s and %s", first.Unit, second.Unit)
		}
		close(finish)
		if last := next(t, got); last.Unit != "long-too" {
			t.Errorf("ran %s", last.Unit)
		}
		stop()
	})
}

// TestOutstandingFollowsTheWorkers: a job may have more units in the queue when there are more workers. A scheduler counts
// them; a process reads the count.
func TestOutstandingFollowsTheWorkers(t *testing.T) { // pitfall 25
	overBoth(t, func(t *testing.T, url string) {
		most := func(configured int) int {
			t.Helper()
			n, err := open(t, url).Outstanding(t.Context(), configured)
			must(t, err)
			return n
		}
		if n := most(0); n != 16 { // without a scheduler, a worker counts
			t.Errorf("%d without a worker, want 16", n)
		}
		handle, _ := collect()
		for range 2 {
			defer serve(t, queue.ServerConfig{URL: url, Concurrency: 10, Express: 3}, queue.Handlers{Unit: handle})()
		}
		duty := func(context.Context, string) error { return nil }
		defer serve(t, queue.ServerConfig{URL: url, Concurrency: 30}, queue.Handlers{Pass: duty})()
		scheduler := open(t, url)
		until(t, "the workers are counted", func() bool {
			workers, err := scheduler.Workers(t.Context())
			must(t, err)
			return workers.Slots == 20
		})
		if n := most(0); n != 40 {
			t.Errorf("%d with twenty slots for long units, want 40", n)
		}
		if n := most(7); n != 7 {
			t.Errorf("%d, want the configured 7", n)
		}
	})
	if _, err := open(t, "redis://127.0.0.1:1").Outstanding(t.Context(), 0); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
}

// The number of commands must not grow with the number of workers: every worker asks.
func TestOutstandingIsOneCommandForAnyNumberOfWorkers(t *testing.T) {
	url := testenv.Redis(t)
	handle, _ := collect()
	for range 20 {
		defer serve(t, queue.ServerConfig{URL: url}, queue.Handlers{Unit: handle})()
	}
	scheduler := open(t, url)
	until(t, "the workers are counted", func() bool {
		workers, err := scheduler.Workers(t.Context())
		must(t, err)
		return workers.Alive == 20
	})
	var commands atomic.Int64
	client, err := queue.Open(url, redisclient.WithObserver(func(string, time.Time, error) { commands.Add(1) }))
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	for range 100 { // commits
		if n, err := client.Outstanding(t.Context(), 0); err != nil || n != 40 {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if n := commands.Load(); n != 1 {
		t.Errorf("%d commands, want 1", n)
	}
}
