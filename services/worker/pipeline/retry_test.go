package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// everything returns the lines of an undisturbed export of the network and the clinical data.
func everything(t *testing.T) (all *memory, want []string) {
	t.Helper()
	all, lines := network(t)
	var list []string
	for _, r := range all.resources {
		list = append(list, string(r.Body))
	}
	for i := range 6 {
		lines[fmt.Sprint("more", i)] = condition(i, 1+i%3)
		list = append(list, condition(i, 1+i%3))
	}
	all = holding(t, list...)
	all.patients = 3
	for _, key := range keysOf(lines) {
		want = append(want, lines[key])
	}
	return all, want
}

var everyType = concat(everyTravelling, []string{"Condition"})

func TestAnUndisturbedExport(t *testing.T) {
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	got := fx.export(everyType...)
	got.wantLines(t, want...)
	fx.wantMetric(0, "sluice_worker_fence_losses_total")
	fx.wantMetric(0, "sluice_worker_units_total", "retried")
}

func TestASourceThatFailsAndRecovers(t *testing.T) { // pitfalls 8, 13, 20
	t.Parallel()
	for _, typ := range []string{"Condition", "Provenance", "Organization"} { // of patients, both, referenced
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			all, want := everything(t)
			fx := newFixture(t, failing(all, typ, 2), members...)
			fx.cfg.FileBytes = 1 // files of the failed attempts are finished, and are garbage
			got := fx.export(everyType...)
			got.wantLines(t, want...)
			got.wantIssues(t, "error")
			fx.wantMetric(2, "sluice_worker_units_total", "retried")
		})
	}
}

func TestARetryWaitsLonger(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	fx := newFixture(t, failing(all, "Patient", 2), members...)
	fx.cfg.MaxAttempts = 5
	w := fx.worker()
	id := fx.kickOff("Patient")
	must(t, w.Handle(t.Context(), queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}))
	task := queue.Task{Kind: export.KindExport, Job: id, Unit: "Patient-00000", Fence: 1}
	for attempt, wantDelay := range []time.Duration{time.Second, 2 * time.Second} {
		must(t, w.Handle(t.Context(), task))
		task.Fence = claimed(task.Fence) + 1
		early := fx.stale(id, -(wantDelay - time.Millisecond))
		if len(early) != 0 {
			t.Errorf("after attempt %d the unit is wanted before %s: %+v", attempt+1, wantDelay, early)
		}
	}
	// Both retries are queued at their new fences, in order.
	if got := fx.queued(2); got[0].Fence != claimed(1)+1 || got[1] != task {
		t.Errorf("queued: %+v", got)
	}
}

// queued returns the next tasks of the queue, without the plan's.
func (fx *fixture) queued(n int) []queue.Task {
	fx.t.Helper()
	tasks := make(chan queue.Task, 100)
	stop := fx.serve(1, 0, func(_ context.Context, task queue.Task) error { tasks <- task; return nil })
	defer stop()
	var found []queue.Task
	for len(found) < n {
		if task := wait(fx.t, tasks); task.Fence > 1 {
			found = append(found, task)
		}
	}
	return found
}

func TestASourceThatAlwaysFails(t *testing.T) { // pitfalls 20, 21
	t.Parallel()
	all, _, others := clinical(t)
	down := failing(all, "Observation", 1000)
	fx := newFixture(t, down, members...)
	fx.cfg.FileBytes = 1
	got := fx.export("Observation", "Condition", "Patient")
	got.wantLines(t, others...)
	got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: its data could not be read or stored in 3 attempts.")
	if down.calls != 3 {
		t.Errorf("%d attempts, want 3", down.calls)
	}
	fx.wantMetric(0, "sluice_worker_guard_refusals_total")
}

func TestWhenEveryTypeFailsTheJobFails(t *testing.T) { // pitfall 20
	t.Parallel()
	all, _ := network(t)
	fx := newFixture(t, failing(all, "", 1000), members...)
	got := fx.export("Observation", "Patient", "Practitioner")
	if got.job.State != export.Failed || got.job.Failure != "The export could not be done: every part of it failed." {
		t.Errorf("the job is %s: %s", got.job.State, got.job.Failure)
	}
}

func TestATaskDeliveredTwiceIsDoneOnce(t *testing.T) { // pitfalls 13, 28
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	w, other := fx.worker(), fx.worker()
	tasks := 0
	job := fx.drive(fx.kickOff(everyType...), func(task queue.Task) {
		tasks++
		must(t, w.Handle(t.Context(), task))
		must(t, other.Handle(t.Context(), task)) // as after a lost answer to the commit
	})
	fx.outcome(job).wantLines(t, want...)
	fx.wantMetric(float64(tasks), "sluice_worker_fence_losses_total")
	fx.wantMetric(0, "sluice_worker_units_total")
}

func TestALateTaskOfAnEarlierFenceIsNothing(t *testing.T) { // pitfall 28
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, failing(all, "Condition", 2), members...)
	w := fx.worker()
	var done []queue.Task
	job := fx.drive(fx.kickOff(everyType...), func(task queue.Task) {
		must(t, w.Handle(t.Context(), task))
		done = append(done, task)
		for _, late := range done {
			must(t, w.Handle(t.Context(), late))
		}
	})
	fx.outcome(job).wantLines(t, want...)
}

// claim claims the task's unit as a worker does.
func (fx *fixture) claim(task queue.Task) export.Lease {
	fx.t.Helper()
	lease, err := fx.jobs.Claim(fx.t.Context(), task.Job, task.Unit, task.Kind, task.Fence, "")
	must(fx.t, err)
	return lease
}

// again returns the unit's task at the fence that it gets after its worker was lost.
func (fx *fixture) again(task queue.Task) queue.Task {
	fx.t.Helper()
	for _, found := range fx.open(task.Job) {
		if found.Unit == task.Unit {
			return found
		}
	}
	fx.t.Fatalf("unit %s is lost for good", task.Unit)
	panic("unreachable")
}

func TestKilledBeforeTheCommit(t *testing.T) { // pitfalls 8, 9, 11, 13, 20
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	fx.cfg.FileBytes = 200 // some files are finished, some not
	w := fx.worker()
	killed := map[export.Kind]int{}
	job := fx.driveOne(fx.kickOff(everyType...), func(task queue.Task) {
		if _, err := w.Unsettled(t.Context(), fx.claim(task)); err != nil {
			t.Fatal(err)
		}
		killed[task.Kind]++
		must(t, w.Handle(t.Context(), fx.again(task)))
	})
	if len(killed) != 5 {
		t.Errorf("killed %v, want every kind of unit", killed)
	}
	got := fx.outcome(job)
	got.wantLines(t, want...)
	got.wantIssues(t, "error")
}

// driveOne passes one task of the job at a time to the function, and reads the open tasks again after each.
func (fx *fixture) driveOne(id export.JobID, do func(queue.Task)) export.Job {
	fx.t.Helper()
	for {
		tasks := fx.open(id)
		if len(tasks) == 0 {
			return fx.drive(id, do)
		}
		do(tasks[0])
	}
}

func TestKilledAtEveryRequestToTheStore(t *testing.T) { // pitfalls 8, 9, 13, 16, 20
	t.Parallel()
	for _, kind := range []export.Kind{
		export.KindPlan, export.KindExport, export.KindResolveReferences, export.KindExportReferenced, export.KindSeal,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it waits for the client's own retries
			all, want := everything(t)
			fx := newFixture(t, all, members...)
			fx.cfg.MaxAttempts = 1000
			fx.cfg.FileBytes = 2000
			got := fx.killedAtEveryRequest(fx.kickOff(everyType...), func(task queue.Task) bool { return task.Kind == kind })
			got.wantLines(t, want...)
			got.wantIssues(t, "error")
		})
	}
}

// killedAtEveryRequest runs the job. A worker dies at each request to the object store of the units that are chosen, one
// after the other.
func (fx *fixture) killedAtEveryRequest(id export.JobID, chosen func(queue.Task) bool) outcome {
	fx.t.Helper()
	w, kills := fx.worker(), 0
	job := fx.driveOne(id, func(task queue.Task) {
		for request := 1; chosen(task); request++ {
			lease := fx.claim(task)
			died := fx.dieAt(w, lease, request)
			task = fx.again(task)
			if !died {
				break // this attempt was finished, and lost before its commit
			}
			kills++
		}
		must(fx.t, w.Handle(fx.t.Context(), task))
	})
	if kills < 2 {
		fx.t.Errorf("%d deaths", kills)
	}
	return fx.outcome(job)
}

// dieAt runs the unit until the object store has served the given number of requests; the worker dies before the last
// response. It reports whether there were that many.
func (fx *fixture) dieAt(w *pipeline.Worker, lease export.Lease, request int) (died bool) {
	fx.t.Helper()
	ctx, die := context.WithCancel(fx.t.Context())
	defer die()
	var answers atomic.Int64
	fx.proxy.OnReply(func(*http.Response) error {
		switch n := answers.Add(1); {
		case n < int64(request):
			return nil
		case n > int64(request) && request%2 == 0:
			return nil // in every second case the requests of the stopping worker still reach the store
		}
		die()
		return errors.New("the store is unreachable")
	})
	defer fx.proxy.Mend()
	_, err := w.Unsettled(ctx, lease)
	if died = ctx.Err() != nil; !died && err != nil {
		fx.t.Fatalf("%s: %v", lease.Unit.ID, err)
	}
	return died
}

func TestKilledBetweenTheCommitAndTheQueue(t *testing.T) { // pitfalls 7, 11
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	w := fx.worker()
	job := fx.driveOne(fx.kickOff(everyType...), func(task queue.Task) {
		lease := fx.claim(task)
		commit, err := w.Unsettled(t.Context(), lease)
		must(t, err)
		must(t, fx.jobs.Commit(t.Context(), lease, commit))
	})
	fx.outcome(job).wantLines(t, want...)
}

func TestAUnitThatKillsItsWorkersIsGivenUp(t *testing.T) { // pitfalls 7, 11, 21
	t.Parallel()
	all, _, others := clinical(t)
	fx := newFixture(t, all, members...)
	w := fx.worker()
	deaths := 0
	job := fx.drive(fx.kickOff("Observation", "Condition", "Patient"), func(task queue.Task) {
		if task.Unit == "Observation-00000" && deaths < fx.cfg.MaxAttempts {
			deaths++
			fx.claim(task)
			return
		}
		must(t, w.Handle(t.Context(), task))
	})
	got := fx.outcome(job)
	got.wantLines(t, others...)
	got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: it was given up after 3 attempts.")
}

func TestAnOutageOfTheObjectStoreIsSurvived(t *testing.T) { // pitfalls 9, 20
	t.Parallel()
	for _, kind := range []export.Kind{
		export.KindPlan, export.KindExport, export.KindResolveReferences, export.KindExportReferenced, export.KindSeal,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it waits for the client's own retries
			all, want := everything(t)
			fx := newFixture(t, all, members...)
			w := fx.worker()
			broken := 0
			job := fx.drive(fx.kickOff(everyType...), func(task queue.Task) {
				if task.Kind == kind && broken == 0 {
					broken++
					fx.proxy.FailAfter(10) // the outage begins while the first object is written
				}
				must(t, w.Handle(t.Context(), task))
				fx.proxy.Mend()
			})
			got := fx.outcome(job)
			got.wantLines(t, want...)
			got.wantIssues(t, "error")
			fx.wantMetric(1, "sluice_worker_units_total", string(kind), "waiting")
		})
	}
}

func TestAnOutageLongerThanAllAttemptsCostsNothing(t *testing.T) { // pitfalls 20, 21
	t.Parallel()
	for _, kind := range []export.Kind{export.KindPlan, export.KindExport, export.KindSeal} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it waits for the client's own retries
			all, observations, _ := clinical(t)
			fx := newFixture(t, all, members...)
			fx.cfg.MaxAttempts = 2
			w := fx.worker()
			down := 0
			job := fx.drive(fx.kickOff("Observation"), func(task queue.Task) {
				if task.Kind == kind && down <= fx.cfg.MaxAttempts {
					down++
					fx.proxy.Break()
				}
				must(t, w.Handle(t.Context(), task))
				fx.proxy.Mend()
			})
			got := fx.outcome(job)
			got.wantLines(t, observations...)
			got.wantIssues(t, "error")
			fx.wantMetric(float64(fx.cfg.MaxAttempts+1), "sluice_worker_units_total", string(kind), "waiting")
		})
	}
}

func TestAFileThatIsCorruptedOnItsWayIsNotPublished(t *testing.T) { // pitfall 9
	t.Parallel()
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	w := fx.worker()
	corrupted := false
	job := fx.drive(fx.kickOff(everyType...), func(task queue.Task) {
		if task.Kind == export.KindExport && !corrupted {
			corrupted = true
			fx.proxy.CorruptAfter(30)
		}
		must(t, w.Handle(t.Context(), task))
		fx.proxy.Mend()
	})
	fx.outcome(job).wantLines(t, want...)
	fx.wantMetric(1, "sluice_worker_units_total", "retried")
}

func TestAnOutcomeWaitsForRedis(t *testing.T) {
	t.Parallel()
	for outcome, row := range map[string]struct {
		end  error // of the unit
		want int   // attempts
	}{
		"done": {}, "retried": {errors.New("the line went dead"), 1}, "waiting": {export.ErrUnavailable, 0},
		"handed_back": {queue.ErrDraining, 0},
	} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			all, _, _ := clinical(t)
			hook := &hooked{Source: all, typ: "Patient"}
			fx, redis := newFixtureOnMiniredis(t, hook, members...)
			task := fx.planned()
			hook.within = func(context.Context, int) error { redis.SetError("LOADING"); return row.end }
			w, ended := fx.worker(), make(chan error, 1)
			go func() { ended <- w.Handle(t.Context(), task) }()
			fx.waitLog("waiting for Redis")
			select {
			case err := <-ended:
				t.Fatalf("the unit ended during the outage: %v", err)
			default:
			}
			hook.within = nil
			redis.SetError("")
			must(t, wait(t, ended))
			fx.wantMetric(1, "sluice_worker_units_total", "export", outcome)
			detail, err := fx.jobs.Inspect(t.Context(), task.Job)
			must(t, err)
			for _, unit := range detail.Units {
				if unit.Unit.ID == task.Unit && unit.Attempts != row.want {
					t.Errorf("%d attempts, want %d", unit.Attempts, row.want)
				}
			}
			fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
		})
	}
}

func TestAClaimWaitsForRedis(t *testing.T) {
	t.Parallel()
	all, _, _ := clinical(t)
	fx, redis := newFixtureOnMiniredis(t, all, members...)
	task := fx.planned()
	redis.SetError("LOADING")
	w, ended := fx.worker(), make(chan error, 1)
	go func() { ended <- w.Handle(t.Context(), task) }()
	fx.waitLog("waiting for Redis")
	redis.SetError("")
	must(t, wait(t, ended))
	fx.wantMetric(1, "sluice_worker_units_total", "export", "done")
}

func TestAnOutcomeThatIsNotRecordedBeforeTheWorkerStopsIsAnError(t *testing.T) {
	t.Parallel() // it waits until the worker gives up
	all, _, _ := clinical(t)
	hook := &hooked{Source: all, typ: "Patient"}
	fx, redis := newFixtureOnMiniredis(t, hook, members...)
	task := fx.planned()
	hook.within = func(context.Context, int) error { redis.SetError("LOADING"); return nil }
	ctx, stop := context.WithCancelCause(t.Context())
	w, ended := fx.worker(), make(chan error, 1)
	go func() { ended <- w.Handle(ctx, task) }()
	fx.waitLog("waiting for Redis")
	stop(queue.ErrDraining)
	if err := wait(t, ended); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v: the task would not be delivered again", err)
	}
	fx.wantMetric(1, "sluice_worker_units_total", "export", "unrecorded")
	fx.wantMetric(0, "sluice_worker_units_total", "export", "done")
	redis.SetError("")
	hook.within = nil
	fx.outcome(fx.finish(w, task.Job)).wantLines(t, patient(1), patient(2), patient(3))
}

func TestALoserOfTheFenceCommitsNothing(t *testing.T) { // pitfalls 13, 28
	t.Parallel()
	// Every unit is rescued while its first worker still runs and commits late.
	all, want := everything(t)
	fx := newFixture(t, all, members...)
	w := fx.worker()
	job := fx.driveOne(fx.kickOff(everyType...), func(task queue.Task) {
		lease := fx.claim(task)
		commit, err := w.Unsettled(t.Context(), lease)
		must(t, err)
		fresh := fx.again(task)
		must(t, w.Handle(t.Context(), fresh))
		if err := fx.jobs.Commit(t.Context(), lease, commit); !errors.Is(err, export.ErrFenced) && !errors.Is(err, export.ErrNotLive) {
			t.Errorf("%s: the loser's commit: %v (pitfall 28)", task.Unit, err)
		}
	})
	fx.outcome(job).wantLines(t, want...)
}

// Rotated credentials refuse everything, which an operator repairs. A refusal of some objects alone may be permanent.
func TestARefusalOfTheObjectStore(t *testing.T) { // pitfalls 10, 21
	t.Parallel()
	all, observations, others := clinical(t)
	for name, row := range map[string]struct {
		refused func(*http.Request) bool
		outcome string
	}{
		"of everything": {func(*http.Request) bool { return true }, "waiting"},
		"of one type":   {func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/Observation/") }, "retried"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fx := newFixture(t, all, members...)
			w := fx.worker()
			denied := 0
			job := fx.drive(fx.kickOff("Observation", "Condition", "Patient"), func(task queue.Task) {
				if strings.HasPrefix(string(task.Unit), "Observation") && denied < fx.cfg.MaxAttempts+1 {
					denied++
					fx.proxy.OnReply(func(reply *http.Response) error {
						if row.refused(reply.Request) {
							reply.StatusCode = http.StatusForbidden
							reply.Header.Set("Content-Type", "application/xml")
							reply.Body = io.NopCloser(strings.NewReader(`<Error><Code>InvalidAccessKeyId</Code></Error>`))
							reply.ContentLength = -1
							reply.Header.Del("Content-Length")
						}
						return nil
					})
				}
				must(t, w.Handle(t.Context(), task))
				fx.proxy.Mend()
			})
			got := fx.outcome(job)
			if row.outcome == "waiting" {
				got.wantLines(t, concat(observations, others)...)
				got.wantIssues(t, "error")
				fx.wantMetric(float64(fx.cfg.MaxAttempts+1), "sluice_worker_units_total", "export", "waiting")
				return
			}
			got.wantLines(t, others...)
			got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing: "+
				"its data could not be read or stored in 3 attempts.")
		})
	}
}
