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

// serve takes tasks from the queue as a process does, until the function that it returns is called.
func (b *bench) serve(
	concurrency int, drain time.Duration, handle func(context.Context, queue.Task) error,
) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- queue.Serve(ctx, queue.ServerConfig{
			URL: b.url, Concurrency: concurrency, Drain: drain, Logger: slog.New(slog.NewJSONHandler(io.Discard, nil)),
		}, queue.Handlers{Unit: handle})
	}()
	return func() {
		cancel()
		must(b.t, <-done)
	}
}

// start records a job and hands it to the queue.
func (b *bench) start(types ...string) export.JobID {
	b.t.Helper()
	id := b.kickOff(types...)
	must(b.t, b.tasks.EnqueueUnit(b.t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}))
	return id
}

// await looks at the job until it has ended.
func (b *bench) await(id export.JobID) export.Job {
	b.t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	percent := 0
	for began := time.Now(); time.Since(began) < patience; <-ticker.C {
		job, err := b.jobs.Job(b.t.Context(), id)
		must(b.t, err)
		if job.Percent < percent || job.State.Live() && job.Percent > 99 {
			b.t.Errorf("percent went from %d to %d (pitfall 14)", percent, job.Percent)
		}
		percent = job.Percent
		if !job.State.Live() {
			return job
		}
	}
	b.t.Fatal("the job does not end")
	panic("unreachable")
}

func TestTwoWorkersOnTheQueue(t *testing.T) { // pitfalls 7, 12
	all, want := everything(t)
	b := newBench(t, all, members...)
	b.cfg.Outstanding = 2
	one, other := b.serve(2, 0, b.worker().Handle), b.serve(2, 0, b.worker().Handle)
	first, second := b.start(everyType...), b.start(everyType...)
	b.outcome(b.await(first)).wantLines(t, want...)
	b.outcome(b.await(second)).wantLines(t, want...)
	one()
	other()
}

func TestARetryComesByTheQueue(t *testing.T) { // pitfall 20
	all, _, _ := clinical(t)
	b := newBench(t, failing(all, "Patient", 1), members...)
	stop := b.serve(1, 0, b.worker().Handle)
	b.outcome(b.await(b.start("Patient"))).wantLines(t, patient(1), patient(2), patient(3))
	stop()
	b.wantMetric(1, "sluice_worker_units_total", "export", "retried")
}

func TestARollingUpdateLosesNothing(t *testing.T) { // pitfalls 8, 11
	all, want := everything(t)
	hook := &hooked{Source: all, typ: "Condition"}
	b := newBench(t, hook, members...)
	running := make(chan struct{})
	var calls atomic.Int64
	hook.within = func(ctx context.Context, _ int) error {
		if calls.Add(1) > 1 {
			return nil
		}
		close(running)
		return untilTold(ctx)
	}
	stop := b.serve(1, 0, b.worker().Handle)
	id := b.start(everyType...)
	wait(t, running)
	stop() // the worker goes in the middle of a unit; nobody rescues anything
	stop = b.serve(1, 0, b.worker().Handle)
	got := b.outcome(b.await(id))
	stop()
	got.wantLines(t, want...)
	for _, file := range got.files {
		if file.Type == "Condition" && file.Name != "Condition.Condition-00000.2.0.ndjson" {
			t.Errorf("%s was written under the fence that was handed back", file.Name)
		}
	}
	if got.job.Percent != 100 {
		t.Errorf("sealed at %s", fmt.Sprint(got.job.Percent))
	}
}
