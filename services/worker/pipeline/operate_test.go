package pipeline_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/ops"
)

func (fx *fixture) operator() *ops.Operator {
	fx.t.Helper()
	log, err := audit.Open(audit.Config{Path: filepath.Join(fx.t.TempDir(), "audit.ndjson"), Process: "test", Now: time.Now})
	must(fx.t, err)
	fx.t.Cleanup(func() { must(fx.t, log.Close()) })
	return &ops.Operator{Jobs: fx.jobs, Queue: fx.tasks, Audit: log, Now: func() time.Time { return instant }}
}

// A unit is given up while a worker runs it. The worker's commit is refused, the last open unit leads to the seal, and
// the manifest reports what is missing.
func TestAUnitThatAnOperatorGivesUp(t *testing.T) { // pitfalls 10, 21
	t.Parallel()
	all, _, others := clinical(t)
	hook := &hooked{Source: all, typ: "Observation"}
	fx := newFixture(t, hook, members...)
	operator := fx.operator()
	id := fx.kickOff("Observation", "Condition", "Patient")
	hook.within = func(ctx context.Context, _ int) error {
		must(t, operator.GiveUpUnit(t.Context(), id, "Observation-00000"))
		return untilTold(ctx)
	}
	got := fx.outcome(fx.finish(fx.worker(), id))
	got.wantLines(t, others...)
	got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: it was given up by an operator.")
	detail, err := operator.Inspect(t.Context(), id)
	must(t, err)
	at := slices.IndexFunc(detail.Units, func(u ops.Unit) bool { return u.ID == "Observation-00000" })
	if at < 0 || detail.Units[at].State != ops.UnitFailed || detail.Units[at].Cause != export.CauseOperator ||
		len(detail.Errors) != 1 || detail.State != export.Completed {
		t.Errorf("%+v", detail)
	}
}

// A unit that was given up is retried while others are open, and the export is complete.
func TestAUnitThatAnOperatorRetries(t *testing.T) {
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	operator := fx.operator()
	id := fx.kickOff(everyType...)
	w := fx.worker()
	failed := false
	job := fx.drive(id, func(task queue.Task) {
		if task.Kind == export.KindExport && !failed {
			failed = true
			must(t, operator.GiveUpUnit(t.Context(), id, task.Unit))
			must(t, w.Handle(t.Context(), task)) // a task that comes too late
			must(t, operator.RetryUnit(t.Context(), id, task.Unit))
			return
		}
		must(t, w.Handle(t.Context(), task))
	})
	got := fx.outcome(job)
	got.wantLines(t, want...)
	got.wantIssues(t, "")
}

// A unit of a stuck worker is retried by another worker, and both end at the same time.
func TestAnOperatorTakesAUnitFromItsWorker(t *testing.T) { // pitfall 28
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	operator := fx.operator()
	task := fx.planned()
	hook.within = func(_ context.Context, call int) error {
		if call > 1 {
			return nil
		}
		must(t, operator.RetryUnit(t.Context(), task.Job, task.Unit))
		fresh := task
		fresh.Fence = claimed(1) + 1
		must(t, fx.worker().Handle(t.Context(), fresh))
		return nil // it continues after all, and finishes
	}
	w := fx.worker()
	must(t, w.Handle(t.Context(), task))
	detail, err := operator.Inspect(t.Context(), task.Job)
	must(t, err)
	at := slices.IndexFunc(detail.Units, func(u ops.Unit) bool { return u.ID == task.Unit })
	if at < 0 || detail.Units[at].State != ops.UnitDone || detail.Units[at].Fence != claimed(claimed(1)+1) {
		t.Fatalf("%+v", detail.Units)
	}
	got := fx.outcome(fx.finish(w, task.Job))
	if len(got.files) != 1 {
		t.Errorf("%d files, want those of one attempt", len(got.files))
	}
}
