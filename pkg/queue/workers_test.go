package queue_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// until waits until the condition holds.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	client := open(t, url)
	task := queue.Task{Kind: export.KindExport, Job: export.NewJobID(), Unit: "Patient-00000", Fence: 3}
	must(t, client.EnqueueUnit(t.Context(), task))
	release := make(chan struct{})
	stop := serve(t, queue.ServerConfig{
		URL: url, Concurrency: 2, Express: 1, Drain: 10 * time.Second, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, queue.Handlers{Unit: func(context.Context, queue.Task) error { <-release; return nil }})
	var process queue.Process
	until(t, "the worker reports its unit", func() bool {
		list, err := client.Processes(t.Context())
		must(t, err)
		if len(list) == 1 {
			process = list[0]
		}
		return len(list) == 1 && len(list[0].Tasks) == 1
	})
	id, err := queue.ProcessID()
	must(t, err)
	if process.ID != id || process.Slots != 3 || !process.Units || process.Maintenance || process.Draining || process.Drainable ||
		process.Tasks[0].Task != task {
		t.Errorf("%+v", process)
	}
	if err := client.Drain(t.Context(), id); !errors.Is(err, export.ErrConflict) {
		t.Errorf("a process that does not listen: %v", err)
	}
	if err := client.Drain(t.Context(), "elsewhere:1"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a process that is not there: %v", err)
	}

	ordered := make(chan bool, 1)
	go func() { ordered <- client.AwaitDrain(t.Context(), id) }()
	until(t, "the order is accepted", func() bool { return client.Drain(t.Context(), id) == nil })
	select {
	case heard := <-ordered:
		if !heard {
			t.Error("the order was not heard")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the order was not heard")
	}
	close(release)
	stop()
}

// A drain order does not bind a later process with the same id, as containers have it.
func TestAnOrderIsNotForTheNextProcess(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	client := open(t, url)
	stop := serve(t, queue.ServerConfig{
		URL: url, Concurrency: 1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, queue.Handlers{Unit: func(context.Context, queue.Task) error { return nil }})
	defer stop()
	id, err := queue.ProcessID()
	must(t, err)
	ctx, die := context.WithCancel(t.Context())
	died := make(chan bool, 1)
	go func() { died <- client.AwaitDrain(ctx, id) }()
	until(t, "it listens", func() bool {
		list, err := client.Processes(t.Context())
		must(t, err)
		return len(list) == 1 && list[0].Drainable
	})
	die()
	if <-died {
		t.Fatal("an order was received before it was given")
	}
	must(t, client.Drain(t.Context(), id)) // the process still counts as alive
	time.Sleep(2 * time.Millisecond)       // the order is older than the next process
	next, enough := context.WithTimeout(t.Context(), time.Second)
	defer enough()
	if client.AwaitDrain(next, id) {
		t.Error("the next process received the order")
	}
}
