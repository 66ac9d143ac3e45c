package queue_test

import (
	"context"
	"errors"
	"testing"
	"time"

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
