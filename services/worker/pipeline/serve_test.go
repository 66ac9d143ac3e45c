package pipeline_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// serve runs the queue's server until the returned function is called.
func (fx *fixture) serve(
	concurrency int, drain time.Duration, handle func(context.Context, queue.Task) error,
) (stop func()) {
	fx.t.Helper()
	ctx, cancel := context.WithCancel(fx.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- queue.Serve(ctx, queue.ServerConfig{
			URL: fx.url, Concurrency: concurrency, Drain: drain, Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)),
		}, queue.Handlers{Unit: handle})
	}()
	return func() {
		cancel()
		must(fx.t, <-done)
	}
}

// start records a job and enqueues it.
func (fx *fixture) start(types ...string) export.JobID {
	fx.t.Helper()
	id := fx.kickOff(types...)
	must(fx.t, fx.tasks.EnqueueUnit(fx.t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}))
	return id
}

// await polls the job until it has ended.
func (fx *fixture) await(id export.JobID) export.Job {
	fx.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	percent := 0
	for began := time.Now(); time.Since(began) < patience; <-ticker.C {
		job, err := fx.jobs.Job(fx.t.Context(), id)
		must(fx.t, err)
		if job.Percent < percent || job.State.Live() && job.Percent > 99 {
			fx.t.Errorf("percent went from %d to %d (pitfall 14)", percent, job.Percent)
		}
		percent = job.Percent
		if !job.State.Live() {
			return job
		}
	}
	fx.t.Fatal("the job does not end")
	panic("unreachable")
}

func TestTwoWorkersOnTheQueue(t *testing.T) { // pitfalls 7, 12
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	fx.cfg.Outstanding = 2
	one, other := fx.serve(2, 0, fx.worker().Handle), fx.serve(2, 0, fx.worker().Handle)
	first, second := fx.start(everyType...), fx.start(everyType...)
	fx.outcome(fx.await(first)).wantLines(t, want...)
	fx.outcome(fx.await(second)).wantLines(t, want...)
	one()
	other()
}

func TestARetryComesByTheQueue(t *testing.T) { // pitfall 20
	t.Parallel()
	all, _, _ := clinical(t)
	fx := newFixture(t, failing(all, "Patient", 1), members...)
	stop := fx.serve(1, 0, fx.worker().Handle)
	fx.outcome(fx.await(fx.start("Patient"))).wantLines(t, patient(1), patient(2), patient(3))
	stop()
	fx.wantMetric(1, "sluice_worker_units_total", "export", "retried")
}

func TestARollingUpdateLosesNothing(t *testing.T) { // pitfalls 8, 11
	t.Parallel()
	all, want := everything(t)
	hook := &hooked{Source: all, typ: "Condition"}
	fx := newFixture(t, hook, members...)
	running := make(chan struct{})
	var calls atomic.Int64
	hook.within = func(ctx context.Context, _ int) error {
		if calls.Add(1) > 1 {
			return nil
		}
		close(running)
		return untilTold(ctx)
	}
	stop := fx.serve(1, 0, fx.worker().Handle)
	id := fx.start(everyType...)
	wait(t, running)
	stop() // the worker stops in the middle of a unit; there is no rescue
	stop = fx.serve(1, 0, fx.worker().Handle)
	got := fx.outcome(fx.await(id))
	stop()
	got.wantLines(t, want...)
	for _, file := range got.files {
		if file.Type == "Condition" && file.Name == export.FileName("Condition-00000", claimed(1), "Condition", 0) {
			t.Errorf("%s was written under the fence that was handed back", file.Name)
		}
	}
	if got.job.Percent != 100 {
		t.Errorf("sealed at %s", fmt.Sprint(got.job.Percent))
	}
}
