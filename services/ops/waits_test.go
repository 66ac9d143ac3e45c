package ops_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

func (d *desk) waits(id export.JobID) string {
	d.t.Helper()
	detail, err := d.Inspect(d.t.Context(), id)
	d.must(err)
	why, err := d.Waits(d.t.Context(), detail)
	d.must(err)
	return why
}

func TestWaits(t *testing.T) {
	d := newDesk(t)
	ctx := t.Context()
	id := d.job("s", 0)
	check := func(what string, id export.JobID, want string) {
		t.Helper()
		if got := d.waits(id); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("without a worker", id, "No worker is running. Open units: 1.")

	// A worker with one slot runs a unit of another job.
	finish := make(chan struct{})
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- queue.Serve(working, queue.ServerConfig{URL: d.url, Concurrency: 1, Drain: time.Minute, Logger: slog.New(slog.DiscardHandler)},
			queue.Handlers{Unit: func(context.Context, queue.Task) error { <-finish; return nil }})
	}()
	t.Cleanup(func() { close(finish); stop(); d.must(<-ended) })
	other := d.job("t", 0)
	d.must(d.Queue.EnqueueUnit(ctx, queue.Task{Kind: export.KindPlan, Job: other, Unit: export.PlanUnit, Fence: 1, Short: true}))
	busy := "Units in the queue: 1. Slots of the workers: 1, busy: 1, with other jobs: 1."
	for deadline := time.Now().Add(30 * time.Second); d.waits(id) != busy; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("with a busy worker: %q, want %q", d.waits(id), busy)
		}
	}

	// Three units, of which one may be in the queue.
	d.plan(id, d.now, units("Patient", 30, "Observation", 20, "Condition", 10))
	check("before its units are issued", id, "A scheduler puts the next units in the queue. Units that wait for it: 3.")
	_, err := d.Jobs.Issue(ctx, id, 1)
	d.must(err)
	lease, err := d.Jobs.Claim(ctx, id, "Patient-00000", export.KindExport, 1, "")
	d.must(err)
	check("at its limit", id, "The job has as many units in the queue and running as it may have at once: 1. Further units: 2.")
	fence, err := d.Jobs.Release(ctx, lease, time.Hour, export.CauseUnavailable)
	d.must(err)
	if got := d.waits(id); !strings.HasPrefix(got, "A dependency of the workers is unavailable. Units that wait for it: 1. The next attempt is in 3") {
		t.Errorf("during an outage: %q", got)
	}
	lease, err = d.Jobs.Claim(ctx, id, "Patient-00000", export.KindExport, fence, "")
	d.must(err)
	_, err = d.Jobs.Release(ctx, lease, time.Hour, export.CauseError)
	d.must(err)
	if got := d.waits(id); !strings.HasPrefix(got, "Units that failed and are tried again: 1. The next attempt is in 3") {
		t.Errorf("after a failed attempt: %q", got)
	}
	d.must(d.Cancel(ctx, id))
	check("after its end", id, "")
}

// The speed of a job is unknown before it has run for a while and has finished a unit.
func TestPace(t *testing.T) {
	d := newDesk(t)
	ctx := t.Context()
	inspect := func(ran time.Duration, finish bool) (rate int64, left time.Duration) {
		t.Helper()
		id := d.job("s", time.Hour)
		d.plan(id, time.Now().Add(-ran), units("Patient", 999, "Observation", 2999))
		_, err := d.Jobs.Issue(ctx, id, 10)
		d.must(err)
		if finish {
			lease, err := d.Jobs.Claim(ctx, id, "Patient-00000", export.KindExport, 1, "")
			d.must(err)
			d.must(d.Jobs.Commit(ctx, lease, jobstore.Commit{Result: export.Result{
				Files: []export.File{{Name: "a", Type: "Patient", Count: 5, Bytes: 100_000}},
			}}))
		}
		detail, err := d.Inspect(ctx, id)
		d.must(err)
		return detail.Rate, detail.Left.Duration
	}
	if rate, left := inspect(time.Second, true); rate != 0 || left != 0 {
		t.Errorf("after a second: %d, %s", rate, left)
	}
	if rate, left := inspect(100*time.Second, false); rate != 0 || left != 0 {
		t.Errorf("before a unit is done: %d, %s", rate, left)
	}
	// A quarter is done in 100 s.
	rate, left := inspect(100*time.Second, true)
	if rate < 900 || rate > 1000 || left < 300*time.Second || left > 330*time.Second {
		t.Errorf("%d bytes per second, %s left", rate, left)
	}
}
