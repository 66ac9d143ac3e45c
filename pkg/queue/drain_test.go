package queue_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

func TestARunningTaskMayFinishInTheDrainTime(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		running, finish := make(chan struct{}), make(chan struct{})
		var ended error
		stop, done := begin(t, queue.ServerConfig{URL: url, Drain: time.Hour}, queue.Handlers{
			Unit: func(ctx context.Context, _ queue.Task) error {
				close(running)
				<-finish
				ended = ctx.Err()
				return nil
			},
		})
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		next(t, running)
		stop()
		select {
		case err := <-done:
			t.Fatalf("Serve returned %v before its handler", err)
		default:
		}
		close(finish)
		must(t, next(t, done))
		if ended != nil {
			t.Errorf("the handler's context ended within the drain time: %v", ended)
		}
		if pending, err := inspect(t, url).ListPendingTasks(bulk); err != nil || len(pending) != 0 {
			t.Errorf("the finished task is still there: %v %v", pending, err)
		}
	})
}

func TestADrainTellsHandlersToHandBackAndWaitsForThem(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		client := open(t, url)
		running, told, finish := make(chan struct{}, 2), make(chan error), make(chan struct{})
		returned := false
		stop, done := begin(t, queue.ServerConfig{URL: url, Drain: time.Second}, queue.Handlers{
			Unit: func(ctx context.Context, _ queue.Task) error {
				running <- struct{}{}
				<-ctx.Done()
				told <- context.Cause(ctx)
				<-finish // it hands back
				returned = true
				return nil
			},
		})
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		must(t, client.EnqueueUnit(t.Context(), task("b"))) // has to wait: one runs at a time
		next(t, running)
		stop()
		if cause := next(t, told); !errors.Is(cause, queue.ErrDraining) {
			t.Errorf("cause %v, want ErrDraining", cause)
		}
		select {
		case err := <-done:
			t.Fatalf("Serve returned %v before its handler", err)
		default:
		}
		close(finish)
		must(t, next(t, done))
		if !returned {
			t.Error("Serve returned before its handler")
		}
		if len(running) != 0 {
			t.Error("a task was taken after the stop")
		}
		pending, err := inspect(t, url).ListPendingTasks(bulk)
		must(t, err)
		if len(pending) != 1 || pending[0].ID != "abcdefghijklmnopqrstuvwxyz:b:1" {
			t.Errorf("pending: %+v, want the one that was never taken", pending)
		}
	})
}

// Asynq gives a task up when Redis is away for 30 s, as it does here on request.
func TestAHandlerWhoseTaskAsynqGivesUpContinuesInItsSlot(t *testing.T) { // pitfall 28
	overBoth(t, func(t *testing.T, url string) {
		client, inspector := open(t, url), inspect(t, url)
		started, finish := make(chan export.UnitID, 10), make(chan struct{})
		var running atomic.Int64
		ended := make(chan error, 10)
		stop, done := begin(t, queue.ServerConfig{URL: url, Drain: time.Hour}, queue.Handlers{
			Unit: func(ctx context.Context, task queue.Task) error {
				if running.Add(1) > 1 {
					t.Errorf("%s runs beside another, with one slot", task.Unit)
				}
				defer running.Add(-1)
				started <- task.Unit
				<-finish
				ended <- ctx.Err()
				return nil
			},
		})
		must(t, client.EnqueueUnit(t.Context(), task("a")))
		next(t, started)
		given := func() bool {
			must(t, inspector.CancelProcessing("abcdefghijklmnopqrstuvwxyz:a:1")) // again, until Asynq listens
			retried, err := inspector.ListRetryTasks(bulk)
			must(t, err)
			return len(retried) > 0
		}
		until(t, "Asynq gives the task up", given)
		must(t, client.EnqueueUnit(t.Context(), task("b")))
		until(t, "a task without a slot is put back", func() bool {
			retried, err := inspector.ListRetryTasks(bulk)
			must(t, err)
			return slices.ContainsFunc(retried, func(task *asynq.TaskInfo) bool {
				return task.ID == "abcdefghijklmnopqrstuvwxyz:b:1" && task.Retried == 0
			})
		})
		stop()
		select {
		case err := <-done:
			t.Fatalf("Serve returned %v before its handlers", err)
		default:
		}
		close(finish)
		must(t, next(t, done))
		if err := next(t, ended); err != nil {
			t.Errorf("the context of the handler ended: %v", err)
		}
	})
}
