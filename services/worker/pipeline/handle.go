package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// settleTimeout bounds what is done for a unit after its own context has ended.
const settleTimeout = 15 * time.Second

// How an attempt at a unit ends.
const (
	outcomeDone       = "done"        // committed
	outcomeRetried    = "retried"     // failed, to be tried again
	outcomeFailed     = "failed"      // failed for good
	outcomeWaiting    = "waiting"     // what it needs is unavailable
	outcomeHandedBack = "handed_back" // the worker stops
	outcomeLost       = "lost"        // another attempt has its fence, or its job has ended
	outcomeUnrecorded = "unrecorded"  // what came of it could not be recorded
)

// Handle works on one task: claims the unit, does it while its heart beats, and records what came of it. It returns
// an error only when the outcome could not be recorded; then the task has to be delivered again.
func (w *Worker) Handle(ctx context.Context, task queue.Task) error {
	log := w.Logger.With("job_id", task.Job, "unit", task.Unit, "fence", task.Fence)
	arrived := time.Now()
	lease, err := w.Jobs.Claim(ctx, task.Job, task.Unit, task.Kind, task.Fence)
	switch {
	case errors.Is(err, export.ErrFenced), errors.Is(err, export.ErrNotLive), errors.Is(err, export.ErrConflict):
		// A duplicate, a late delivery or an ended job: the work is done, or wanted no more.
		log.Debug("unit is not for us", "err", err)
		w.metrics.fenced.Inc()
		return nil
	case err != nil:
		return err
	}
	log = telemetry.WithTrace(log, lease.Trace)
	ctx, span := w.traceUnit(ctx, lease, task.Trace, arrived)
	w.metrics.busy.Inc()
	defer w.metrics.busy.Dec()
	log.Info("unit claimed", "kind", lease.Unit.Kind, "type", lease.Unit.Type, "attempt", lease.Attempt+1)
	if lease.Unit.Short() {
		end := sync.OnceFunc(w.shortUnits.begin(lease.Job))
		// A plan or a references unit of a population is not short at all; others need not rest for it.
		defer time.AfterFunc(shortUnitWindow, end).Stop()
		defer end()
	}
	began := time.Now()
	commit, runErr := w.keepAlive(ctx, lease, func(ctx context.Context) (jobstore.Commit, error) {
		if lease.Attempt >= w.cfg.MaxAttempts {
			return jobstore.Commit{}, export.Permanent("it was given up after %d attempts", lease.Attempt)
		}
		return w.run(ctx, lease)
	})

	// The unit's own context may have ended, which is no reason to lose what is known by now.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	outcome, err := w.settle(settle, log, lease, commit, runErr)
	if err != nil {
		outcome = outcomeUnrecorded
	}
	w.metrics.units.WithLabelValues(string(lease.Unit.Kind), lease.Unit.Type, outcome).Inc()
	w.metrics.duration.WithLabelValues(string(lease.Unit.Kind)).Observe(time.Since(began).Seconds())
	endUnit(span, commit.Result, outcome)
	log.Info("unit settled", "kind", lease.Unit.Kind, "type", lease.Unit.Type, "outcome", outcome,
		"attempt", lease.Attempt+1, "seconds", time.Since(began).Seconds())
	return err
}

func (w *Worker) run(ctx context.Context, lease export.Lease) (jobstore.Commit, error) {
	job, err := w.Jobs.Job(ctx, lease.Job)
	if err != nil {
		return jobstore.Commit{}, err
	}
	switch lease.Unit.Kind {
	case export.KindPlan:
		return w.plan(ctx, lease, job)
	case export.KindExport:
		return w.export(ctx, lease, job)
	case export.KindResolveReferences:
		return w.references(ctx, lease, job)
	case export.KindExportReferenced:
		return w.referenced(ctx, lease, job)
	case export.KindSeal:
		return w.seal(ctx, lease, job)
	default:
		return jobstore.Commit{}, fmt.Errorf("unit of unknown kind %q", lease.Unit.Kind)
	}
}

// keepAlive runs the work while it reports the lease alive. The work's context ends as soon as a heartbeat learns
// that the lease is lost or the job has ended; the cause says which.
func (w *Worker) keepAlive(
	ctx context.Context, lease export.Lease, work func(context.Context) (jobstore.Commit, error),
) (jobstore.Commit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var beating sync.WaitGroup
	beating.Go(func() {
		ticker := time.NewTicker(w.cfg.Heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			err := w.Jobs.Heartbeat(ctx, lease)
			if errors.Is(err, export.ErrFenced) || errors.Is(err, export.ErrNotLive) {
				cancel(err)
				return
			}
			// A store that cannot be reached decides nothing: if we are taken for dead meanwhile, the fence tells.
		}
	})
	// Deferred, because work may panic: a heart that beat on would keep a dead unit from ever being rescued.
	defer beating.Wait()
	defer cancel(nil)
	commit, err := work(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // why it was stopped, not how it noticed; work that was done nevertheless is offered for commit
	}
	return commit, err
}

// complete returns the error of a stream, else why the context has ended: a driver that ends its stream silently then
// has not given everything, and what it gave must not be taken for all (pitfall 8).
func complete(ctx context.Context, err error) error {
	if err == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// settle records the outcome of a unit and names it for the metrics. Whatever was to be recorded, a unit that has lost
// its fence leaves it at that, and one whose job has ended asks for another purge. Objects that a lost attempt has made
// are not deleted here: a commit whose answer was lost looks like a lost fence, and the sweep can tell the two apart.
func (w *Worker) settle(
	ctx context.Context, log *slog.Logger, lease export.Lease, commit jobstore.Commit, runErr error,
) (outcome string, err error) {
	outcome, err = w.record(ctx, log, lease, commit, runErr)
	switch {
	case errors.Is(err, export.ErrFenced):
		return outcomeLost, nil
	case w.ended(ctx, lease, err):
		return outcomeLost, w.purgeLate(ctx, lease)
	default:
		return outcome, err
	}
}

// record does for a unit what its outcome asks for. It returns ErrFenced or ErrNotLive when it is too late for that.
func (w *Worker) record(
	ctx context.Context, log *slog.Logger, lease export.Lease, commit jobstore.Commit, runErr error,
) (outcome string, err error) {
	var permanent export.PermanentError
	switch {
	case errors.Is(runErr, export.ErrFenced), w.ended(ctx, lease, runErr):
		return outcomeLost, runErr
	case errors.Is(runErr, queue.ErrDraining):
		return outcomeHandedBack, w.release(ctx, lease, 0, export.CauseDraining)
	case errors.As(runErr, &permanent):
		log.Error("unit failed for good", "err", runErr)
		return outcomeFailed, w.giveUp(ctx, log, lease, permanent.Reason)
	case errors.Is(runErr, export.ErrUnavailable):
		// Nothing is wrong with the unit. An outage may last longer than any number of attempts, and must not cost a
		// job what it has; a job that waits too long is ended by the scheduler.
		log.Warn("unit waits for what is unavailable", "err", runErr)
		return outcomeWaiting, w.release(ctx, lease, w.cfg.OutageDelay, export.CauseUnavailable)
	case runErr != nil && lease.Attempt+1 >= w.cfg.MaxAttempts:
		log.Error("unit failed for good", "err", runErr)
		reason := fmt.Sprintf("its data could not be read or stored in %d attempts", lease.Attempt+1)
		return outcomeFailed, w.giveUp(ctx, log, lease, reason)
	case runErr != nil:
		log.Warn("unit is to be tried again", "err", runErr)
		return outcomeRetried, w.release(ctx, lease, export.Backoff(lease.Attempt+1), export.CauseError)
	}
	return outcomeDone, w.close(ctx, log, lease, commit)
}

// ended reports whether an error says that the lease's job has ended, or was purged under the unit's hands.
func (w *Worker) ended(ctx context.Context, lease export.Lease, err error) bool {
	if errors.Is(err, export.ErrNotLive) {
		return true
	}
	if !errors.Is(err, export.ErrNotFound) {
		return false
	}
	exists, lookErr := w.Jobs.Exists(ctx, lease.Job)
	return lookErr == nil && !exists
}

// purgeLate asks for another purge of a job that ended while the unit was writing: the purge that its end brought about
// may have been over before the last object came in (spec 5, pitfall 16).
func (w *Worker) purgeLate(ctx context.Context, lease export.Lease) error {
	return w.Queue.EnqueueLatePurge(ctx, queue.TaskOf(lease.Job, lease.Unit, lease.Fence))
}

// close commits the unit and hands the units that have become free to the queue.
func (w *Worker) close(ctx context.Context, log *slog.Logger, lease export.Lease, commit jobstore.Commit) error {
	err := func() (err error) {
		ctx, span := telemetry.StartSpan(ctx, "commit")
		defer func() { telemetry.EndSpan(span, err) }()
		return w.Jobs.Commit(ctx, lease, commit)
	}()
	if err != nil {
		return err
	}
	w.metrics.committed.SetToCurrentTime()
	if commit.Result.Failure != "" {
		w.metrics.gaveUp.Inc()
	}
	if commit.Seal != nil {
		w.metrics.jobs.WithLabelValues(jobCompleted).Inc()
		w.clear(ctx, lease.Job)
		return nil
	}
	// From here on the unit is closed. What is not enqueued now is enqueued by the next rescue.
	if err := w.Issue(ctx, lease.Job); err != nil {
		log.Warn("units are left to the rescue", "err", err)
	}
	return nil
}

// Issue hands waiting units of the job to the queue, up to the number that may be outstanding.
func (w *Worker) Issue(ctx context.Context, id export.JobID) error {
	most, err := w.Queue.Outstanding(ctx, w.cfg.Outstanding)
	if err != nil {
		return err
	}
	issued, err := w.Jobs.Issue(ctx, id, most)
	if err != nil {
		if errors.Is(err, export.ErrNotLive) {
			return nil
		}
		return err
	}
	var errs []error
	for _, unit := range issued {
		errs = append(errs, w.enqueue(ctx, queue.TaskOf(id, unit.Unit, unit.Fence)))
	}
	return errors.Join(errs...)
}

// release gives the unit back and enqueues it under its new fence.
func (w *Worker) release(
	ctx context.Context, lease export.Lease, delay time.Duration, cause export.Cause,
) error {
	fence, err := w.Jobs.Release(ctx, lease, delay, cause)
	if err != nil {
		return err
	}
	task := queue.TaskOf(lease.Job, lease.Unit, fence)
	task.Delay = delay
	return w.enqueue(ctx, task)
}

// enqueue puts the task in the queue. One that a worker has taken in this moment needs nothing.
func (w *Worker) enqueue(ctx context.Context, task queue.Task) error {
	task.Trace = telemetry.TraceParent(ctx)
	if err := w.Queue.EnqueueUnit(ctx, task); !errors.Is(err, queue.ErrTaken) {
		return err
	}
	return nil
}

// giveUp closes a unit that cannot be done. A job without plan or seal has nothing to give: it fails as a whole.
// Any other unit becomes an entry of the manifest's error list, and the rest of the job goes on (pitfalls 10, 21).
func (w *Worker) giveUp(ctx context.Context, log *slog.Logger, lease export.Lease, reason string) error {
	if lease.Unit.Kind == export.KindPlan || lease.Unit.Kind == export.KindSeal {
		now := w.Now()
		err := w.Jobs.FailUnit(ctx, lease, "The export could not be done: "+reason+".", now, now.Add(w.cfg.Retention))
		if err != nil && !errors.Is(err, export.ErrConflict) {
			return err
		}
		if err == nil {
			w.metrics.jobs.WithLabelValues(jobFailed).Inc()
		}
		return w.purgeLate(ctx, lease) // failed, or ended otherwise in the meantime: nothing it has made is wanted
	}
	job, err := w.Jobs.Job(ctx, lease.Job)
	if err != nil {
		return err
	}
	if lease.Unit.Kind == export.KindResolveReferences {
		// What a lost attempt at it has cut would come to light with its failure.
		if err := w.Jobs.Stage(ctx, lease, nil); err != nil {
			return err
		}
	}
	return w.close(ctx, log, lease, jobstore.Commit{
		Result: export.Result{Failure: reason},
		Next:   job.Request.Next(lease.Unit.Kind, false),
	})
}
