package pipeline_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// newFixtureOnMiniredis returns a fixture whose Redis can be made to fail.
func newFixtureOnMiniredis(t *testing.T, src source.Source, members ...string) (*fixture, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	return newFixtureOn(t, "redis://"+server.Addr(), src, members...), server
}

// planned returns a job whose plan is done, and the task of its Patient unit.
func (fx *fixture) planned() queue.Task {
	fx.t.Helper()
	id := fx.kickOff("Patient")
	must(fx.t, fx.worker().Handle(fx.t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}))
	return queue.Task{Kind: export.KindExport, Job: id, Unit: "Patient-00000", Fence: 1}
}

// untilTold is a query that lasts until its context ends.
func untilTold(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return errors.New("the unit was not stopped")
	}
}

// lost checks that the attempt was lost and has published nothing.
func (fx *fixture) lost(task queue.Task) {
	fx.t.Helper()
	if _, err := fx.jobs.Result(fx.t.Context(), task.Job, task.Unit); !errors.Is(err, export.ErrNotFound) {
		fx.t.Errorf("the unit has a result: %v", err)
	}
	fx.wantMetric(1, "sluice_worker_units_total", "export", "lost")
}

func TestACancelStopsARunningUnit(t *testing.T) { // pitfalls 15, 16
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	hook.within = func(ctx context.Context, _ int) error {
		must(t, fx.jobs.Cancel(t.Context(), task.Job, instant))
		return untilTold(ctx)
	}
	must(t, fx.worker().Handle(t.Context(), task))
	fx.lost(task)
	if job, err := fx.jobs.Job(t.Context(), task.Job); err != nil || job.State != export.Cancelled {
		t.Errorf("the job is %s: %v", job.State, err)
	}
	if tasks := fx.open(task.Job); len(tasks) != 0 {
		t.Errorf("a cancelled job has tasks: %+v", tasks)
	}
	must(t, fx.worker().Handle(t.Context(), task)) // queued work is dropped
}

func TestEveryUnitOfACancelledJobAsksForAnotherPurge(t *testing.T) { // pitfall 16
	t.Parallel()
	// The cancel's purge may have run before the unit's last file was written.
	for name, end := range map[string]error{
		"done":        nil,
		"told":        export.ErrNotLive,
		"to be tried": errors.New("the line went dead"),
		"given up":    export.Permanent("it cannot be"),
		"waiting":     export.ErrUnavailable,
		"handed back": queue.ErrDraining,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a late purge is due after up to 5 s
			all, _, _ := clinical(t)
			hook := &hooked{Source: all, typ: "Patient"}
			fx := newFixture(t, hook, members...)
			task := fx.planned()
			hook.within = func(context.Context, int) error {
				err := fx.jobs.Cancel(t.Context(), task.Job, instant)
				if err != nil && !errors.Is(err, export.ErrConflict) {
					t.Error(err)
				}
				return end
			}
			must(t, fx.worker().Handle(t.Context(), task))
			fx.lost(task)

			purges := make(chan export.JobID, 1)
			ctx, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() {
				served <- queue.Serve(ctx, queue.ServerConfig{URL: fx.url, Concurrency: 1, Logger: slog.New(slog.DiscardHandler)},
					queue.Handlers{Purge: func(_ context.Context, id export.JobID) error { purges <- id; return nil }})
			}()
			if id := wait(t, purges); id != task.Job {
				t.Errorf("purge of %s, want %s", id, task.Job)
			}
			stop()
			must(t, <-served)
		})
	}
}

func TestAJobPurgedUnderAUnit(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	hook.within = func(ctx context.Context, _ int) error {
		must(t, fx.jobs.Remove(t.Context(), task.Job))
		return untilTold(ctx)
	}
	must(t, fx.worker().Handle(t.Context(), task))
	fx.lost(task)
	if there, err := fx.jobs.Exists(t.Context(), task.Job); err != nil || there {
		t.Errorf("the job exists again: %v %v", there, err)
	}
}

func TestARescueStopsTheUnitThatWasTakenForLost(t *testing.T) { // pitfall 28
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	hook.within = func(ctx context.Context, call int) error {
		if call > 1 {
			return nil
		}
		for { // a heartbeat between the rescue and the claim of another worker gets the unit back
			fresh := fx.again(task)
			_, err := fx.jobs.Claim(ctx, fresh.Job, fresh.Unit, fresh.Kind, fresh.Fence, "")
			if !errors.Is(err, export.ErrFenced) {
				must(t, err)
				return untilTold(ctx)
			}
		}
	}
	w := fx.worker()
	must(t, w.Handle(t.Context(), task))
	fx.lost(task)
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

func TestAStoppingWorkerHandsItsUnitBack(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	ctx, stop := context.WithCancelCause(t.Context())
	hook.within = func(ctx context.Context, call int) error {
		if call > 1 {
			return nil
		}
		stop(queue.ErrDraining)
		return untilTold(ctx)
	}
	w := fx.worker()
	must(t, w.Handle(ctx, task))
	fx.wantMetric(1, "sluice_worker_units_total", "export", "handed_back")
	lost, unclaimed, err := fx.jobs.RescueStale(t.Context(), task.Job, 0, 10)
	must(t, err)
	if len(lost) != 0 || len(unclaimed) != 1 || unclaimed[0].Fence != claimed(1)+1 || unclaimed[0].Failures != 0 {
		t.Errorf("handed back as %+v, lost %+v; want another fence and no attempt counted", unclaimed, lost)
	}
	if got := fx.queued(1); got[0].Unit != task.Unit || got[0].Fence != claimed(1)+1 {
		t.Errorf("queued: %+v", got)
	}
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

// silent is a source whose streams end without an error when their context ends, as careless drivers' do.
type silent struct{ *hooked }

func (s silent) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	err := s.hooked.ForPatients(ctx, q, yield)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the error that the test covers
	}
	return err
}

func TestAStreamThatEndsSilentlyIsNotComplete(t *testing.T) { // pitfalls 8, 9
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, silent{hook}, members...)
	task := fx.planned()
	ctx, stop := context.WithCancelCause(t.Context())
	hook.before = func(ctx context.Context, call int) error {
		if call == 1 { // before a file is begun, whose upload would detect the end
			stop(queue.ErrDraining)
			return untilTold(ctx)
		}
		return nil
	}
	w := fx.worker()
	must(t, w.Handle(ctx, task))
	fx.wantMetric(1, "sluice_worker_units_total", "export", "handed_back")
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

func TestAUnitThatIsAliveSaysSo(t *testing.T) { // pitfall 27
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	hook.within = func(context.Context, int) error {
		for range 5 {
			wait(t, fx.beats)
		}
		return nil
	}
	must(t, fx.worker().Handle(t.Context(), task))
	if _, err := fx.jobs.Result(t.Context(), task.Job, task.Unit); err != nil {
		t.Error(err)
	}
	for len(fx.beats) > 0 {
		<-fx.beats
	}
	select {
	case <-fx.beats:
		t.Error("heartbeats continue after the unit")
	case <-time.After(10 * fx.cfg.Heartbeat): // ten heartbeats would have been sent
	}
}

func TestAnOutageOfRedisDuringAUnit(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx, redis := newFixtureOnMiniredis(t, hook, members...)
	task := fx.planned()
	hook.within = func(context.Context, int) error {
		redis.SetError("LOADING")
		for range 5 { // failed heartbeats
			wait(t, fx.beats)
		}
		redis.SetError("")
		return nil
	}
	w := fx.worker()
	must(t, w.Handle(t.Context(), task))
	fx.wantMetric(1, "sluice_worker_units_total", "export", "done")
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

// Units that could not be enqueued after a commit do not wait for a rescue, which comes after the silence of a lost worker.
func TestUnitsAreEnqueuedAfterAnOutageOfTheQueue(t *testing.T) {
	for name, outstanding := range map[string]int{"units that are issued": 5, "units that are not issued yet": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, _, _ := clinical(t)
			fx := newFixture(t, all, members...)
			fx.cfg.Outstanding = outstanding
			server := miniredis.RunT(t)
			must(t, fx.tasks.Close())
			var err error
			fx.tasks, err = queue.Open("redis://" + server.Addr())
			must(t, err)
			server.SetError("LOADING")
			id := fx.kickOff("Patient")
			w, ended := fx.worker(), make(chan error)
			go func() {
				ended <- w.Handle(t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1})
			}()
			fx.waitLog("waiting for Redis")
			server.SetError("")
			must(t, <-ended)
			queued, err := fx.tasks.Queued(t.Context(), []queue.Task{{
				Kind: export.KindExport, Job: id, Unit: "Patient-00000", Fence: 1, Short: true,
			}})
			if err != nil || !queued[0] {
				t.Errorf("the unit is in the queue: %v (%v)", queued, err)
			}
		})
	}
}

func TestAUnitThatIsRescuedDuringAnOutageOfRedis(t *testing.T) { // pitfall 28
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx, redis := newFixtureOnMiniredis(t, hook, members...)
	task := fx.planned()
	w := fx.worker()
	hook.within = func(context.Context, int) error {
		hook.within = nil
		redis.SetError("LOADING")
		wait(t, fx.beats)
		redis.SetError("")
		// Another worker runs it meanwhile. A heartbeat between the rescue and its claim gets the unit back.
		for fx.metric("sluice_worker_units_total", "export", "done") == 0 {
			must(t, w.Handle(t.Context(), fx.again(task)))
		}
		return nil
	}
	must(t, w.Handle(t.Context(), task))
	fx.wantMetric(1, "sluice_worker_units_total", "export", "done")
	fx.wantMetric(1, "sluice_worker_units_total", "export", "lost")
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

func TestAPanicEndsTheHeartbeat(t *testing.T) { // pitfall 11
	t.Parallel()
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient", within: func(context.Context, int) error { panic("a driver's bug") }}
	fx := newFixture(t, hook, members...)
	task := fx.planned()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is swallowed")
			}
		}()
		_ = fx.worker().Handle(t.Context(), task)
	}()
	for len(fx.beats) > 0 {
		<-fx.beats
	}
	select {
	case <-fx.beats:
		t.Error("heartbeats continue after the panic: the unit would never be rescued")
	case <-time.After(10 * fx.cfg.Heartbeat):
	}
}
