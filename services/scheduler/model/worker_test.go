package model

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// worker is one slot of a worker, which does what pipeline.Worker.Handle does, one call at a time. It repeats a call that
// had no answer until it dies.
type worker struct {
	name   string
	phase  phase
	task   task
	copied bool   // the task was delivered a second time: the queue does not know of it
	token  string // of the claim
	lease  export.Lease
	commit jobstore.Commit
	result outcome
	asleep bool // it is stopped, or cut off, and does not know
}

type phase string

const (
	idle      phase = ""
	claiming  phase = "claims"
	writing   phase = "writes"
	staging   phase = "stages"
	recording phase = "records"
	purging   phase = "asks for a purge"
)

type outcome string

const (
	outcomeDone    outcome = "done"
	outcomeRetried outcome = "retried"
	outcomeWaiting outcome = "waiting"
	outcomeStopped outcome = "handed back"
	outcomeFailed  outcome = "failed"
)

var causes = map[outcome]export.Cause{
	outcomeRetried: export.CauseError, outcomeWaiting: export.CauseUnavailable, outcomeStopped: export.CauseDraining,
}

var delays = map[outcome]time.Duration{outcomeRetried: 4 * time.Second, outcomeWaiting: 10 * time.Second}

// The types of the units that the model's plans and references units cut.
const (
	ownType      = "Patient"
	followedType = "Practitioner"
)

// accept gives a task to an idle worker.
func (w *world) accept(k *worker, t task, copied bool) {
	w.tokens++
	*k = worker{name: k.name, phase: claiming, task: t, copied: copied, token: strconv.Itoa(w.tokens)}
	if !copied {
		w.take(t)
	}
	w.ledger.tasks = append(w.ledger.tasks, t)
	w.observe(other)
}

// die ends the process: it forgets everything. Its task stays active in the queue.
func (w *world) die(k *worker) { *k = worker{name: k.name} }

// finish ends the handling of the task.
func (w *world) finish(k *worker) {
	if !k.copied {
		w.done(k.task)
		w.observe(other)
	}
	w.die(k)
}

func (w *world) goOn(k *worker) {
	w.acting = k
	switch k.phase {
	case claiming:
		w.claim(k)
	case writing:
		w.write(k)
	case staging:
		w.stage(k)
	case recording:
		w.record(k)
	case purging:
		if err := w.perform(other, 1, func() error { return w.lifecycle.PurgeLate(w.ctx, k.task.job) }); err == nil {
			w.finish(k)
		}
	case idle:
	}
	w.acting = nil
}

func (w *world) claim(k *worker) {
	want := w.mayClaim(k)
	err := w.perform(claim, 1, func() (err error) {
		k.lease, err = w.store.Claim(w.ctx, k.task.job, k.task.unit, k.task.kind(), k.task.fence, k.token)
		return err
	})
	if k.phase == idle || unavailable(err) {
		return
	}
	w.verdict(k, "claim", err, want)
	if err != nil {
		w.finish(k)
		return
	}
	w.ledger.heard(k.lease, w.clock.Now())
	k.phase = writing
	if k.lease.Failures >= maxAttempts {
		k.phase, k.result = recording, outcomeFailed
	}
}

// lost ends the attempt if the error says that it has lost its unit.
func (w *world) lost(k *worker, err error) bool {
	switch {
	case errors.Is(err, export.ErrFenced):
		w.finish(k)
	case errors.Is(err, export.ErrNotLive), errors.Is(err, export.ErrNotFound):
		k.phase = purging
	default:
		return false
	}
	return true
}

func (w *world) heartbeat(k *worker) {
	w.acting = k
	want := w.holds(k)
	err := w.perform(heartbeat, 1, func() error { return w.store.Heartbeat(w.ctx, k.lease) })
	w.acting = nil
	if k.phase == idle || unavailable(err) {
		return
	}
	w.verdict(k, "heartbeat", err, want)
	if !w.lost(k, err) {
		w.ledger.heard(k.lease, w.clock.Now())
	}
}

// write writes the attempt's object, which for the seal has the names of all files.
func (w *world) write(k *worker) {
	job, fence := k.lease.Job, k.lease.Fence
	k.commit = jobstore.Commit{Next: w.requestOf(job).Next(k.lease.Unit.Kind, false)}
	switch k.lease.Unit.Kind {
	case export.KindPlan:
		w.put(export.CohortPrefix(job, fence)+"chunk", "x")
		k.phase = staging
	case export.KindResolveReferences:
		k.phase = staging
	case export.KindSeal:
		w.seal(k)
	default:
		name := export.FileName(k.lease.Unit.ID, fence, k.lease.Unit.Type, 0)
		stored := w.put(export.FileKey(job, k.lease.Unit.Type, name), name)
		k.commit.Result = export.Result{Files: []export.File{{
			Name: name, Type: k.lease.Unit.Type, Key: stored.Key, Count: fence%7 + 1, Bytes: fence%11 + 1, Stored: stored.Size,
		}}}
		w.decide(k)
	}
}

func (w *world) seal(k *worker) {
	var names []string
	failures, done := 0, 0
	err := w.perform(other, 1, func() error {
		names, failures, done = nil, 0, 0
		return w.store.Results(w.ctx, k.lease.Job, func(unit export.Unit, result export.Result) error {
			for _, file := range result.Files {
				names = append(names, file.Name)
			}
			if result.Failure != "" {
				failures++
			} else if unit.Kind.Writes() {
				done++
			}
			return nil
		})
	})
	if k.phase == idle {
		return
	}
	if err != nil {
		return
	}
	if failures > 0 && done == 0 {
		k.phase, k.result = recording, outcomeFailed
		return
	}
	key := export.ManifestKey(k.lease.Job, k.lease.Fence)
	w.put(key, "x")
	w.ledger.manifests[key] = names
	now := w.clock.Now()
	k.commit.Seal = &jobstore.Seal{Manifest: key, Finished: now, Expires: now.Add(retention)}
	w.decide(k)
}

// stage cuts units, another number at each attempt. They carry the fence of the attempt.
func (w *world) stage(k *worker) {
	kind, typ := export.KindExport, ownType
	if k.lease.Unit.Kind == export.KindResolveReferences {
		kind, typ = export.KindExportReferenced, followedType
	}
	var units []export.Unit
	for n := range rapid.SampledFrom([]int{1, 2, 0, 3}).Draw(w.t, "units") {
		units = append(units, export.Unit{
			ID: export.UnitID(fmt.Sprintf("%s-%05d", typ, n)), Kind: kind, Type: typ, Digest: strconv.FormatInt(k.lease.Fence, 10),
			Bytes: export.ShortBytes - 1 + int64(n), // the third has a queue of its own
		})
	}
	want := w.holds(k)
	err := w.perform(stage, 1, func() error { return w.store.Stage(w.ctx, k.lease, units) })
	if k.phase == idle || unavailable(err) {
		return
	}
	w.verdict(k, "stage", err, want)
	if w.lost(k, err) {
		return
	}
	w.decide(k)
	if k.lease.Unit.Kind == export.KindPlan {
		k.commit.Next = w.requestOf(k.lease.Job).Next(export.KindPlan, len(units) == 0)
		k.commit.Plan = &jobstore.Plan{Snapshot: w.clock.Now()}
	}
}

// decide draws the outcome of the attempt.
func (w *world) decide(k *worker) {
	k.phase, k.result = recording, outcomeDone
	if w.fair {
		return
	}
	k.result = rapid.SampledFrom([]outcome{
		outcomeDone, outcomeDone, outcomeDone, outcomeDone, outcomeDone, outcomeDone, outcomeDone, outcomeDone, outcomeDone,
		outcomeDone, outcomeFailed, outcomeFailed, outcomeRetried, outcomeWaiting, outcomeStopped,
	}).Draw(w.t, "outcome")
	if k.result == outcomeRetried && k.lease.Failures+1 >= maxAttempts {
		k.result = outcomeFailed
	}
}

func (w *world) record(k *worker) {
	job := w.seen.jobs[k.lease.Job]
	want := w.holds(k)
	var err error
	switch {
	case k.result == outcomeDone:
		want = want || w.closedBy(k)
		err = w.perform(commit, 4, func() error {
			issueErr, err := w.lifecycle.Commit(w.ctx, k.lease, k.commit)
			if !w.crooked {
				must(w.t, issueErr)
			}
			return err
		})
	case k.result != outcomeFailed:
		want = want || w.releasedBy(k)
		delay := delays[k.result]
		err = w.perform(release, 2, func() error { return w.lifecycle.Release(w.ctx, k.lease, delay, causes[k.result]) })
	case k.lease.Unit.Kind == export.KindPlan || k.lease.Unit.Kind == export.KindSeal:
		err = w.perform(giveUp, 2, func() error {
			_, err := w.lifecycle.FailJobFrom(w.ctx, k.lease, "it broke")
			return err
		})
		want = want || err == nil && job.state() != gone && !isLive(job.state()) // it has ended in any way
	default:
		k.commit = jobstore.Commit{Result: export.Result{Failure: "it broke"}}
		want = want || w.closedBy(k)
		err = w.perform(giveUp, 5, func() error {
			_, err := w.lifecycle.CloseFailed(w.ctx, k.lease, k.commit.Result.Failure)
			return err
		})
		if w.interrupted {
			want = err == nil
		}
	}
	if k.phase == idle || unavailable(err) {
		return
	}
	w.verdict(k, string(k.result), err, want)
	if w.lost(k, err) {
		return
	}
	if k.result == outcomeDone && k.commit.Seal != nil {
		_, err := w.objects.DeletePrefix(w.ctx, export.Scaffolding(k.lease.Job)...)
		must(w.t, err)
	}
	w.finish(k)
}

// verdict compares the answer to a call of a worker with what the model allows.
func (w *world) verdict(k *worker, call string, err error, want bool) {
	switch {
	case err != nil && !jobs.Gone(err):
		w.t.Fatalf("verdict: %s of %s %s at fence %d: %v", call, k.task.job[:1], k.task.unit, k.lease.Fence, err)
	case (err == nil) != want:
		w.t.Fatalf("verdict: %s of %s %s at fence %d (task %d): %v; the model accepts it: %v", call, k.task.job[:1], k.task.unit,
			k.lease.Fence, k.task.fence, err, want)
	}
}

func (w *world) requestOf(id export.JobID) export.Request {
	for _, job := range w.jobs {
		if job.id == id {
			return job.request
		}
	}
	w.t.Fatalf("no job %s", id)
	return export.Request{}
}

func unavailable(err error) bool {
	return errors.Is(err, export.ErrUnavailable) || errors.Is(err, errCut)
}
