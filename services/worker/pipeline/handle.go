package pipeline

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

const (
	// recordTimeout is how long the recording of an outcome may continue after the unit's own context has ended.
	recordTimeout = 15 * time.Second
	// outlastEvery is how often a step is repeated while Redis is unavailable.
	outlastEvery = time.Second
)

// outcome is the outcome of an attempt at a unit. decide returns it once, and record carries it out.
type outcome struct {
	name   string          // one of the names below
	commit jobstore.Commit // done
	reason string          // failed: for the job's owner
	delay  time.Duration   // retried, waiting, handed back: until the unit runs again
	cause  export.Cause    // retried, waiting, handed back: the cause
	ended  bool            // lost: the job has ended, so the objects of the attempt must be purged
}

// The names of outcomes, as in the metrics.
const (
	outcomeDone       = "done"        // committed
	outcomeRetried    = "retried"     // failed; another attempt follows
	outcomeFailed     = "failed"      // failed for good
	outcomeWaiting    = "waiting"     // a dependency is unavailable
	outcomeHandedBack = "handed_back" // the worker stops
	outcomeLost       = "lost"        // the fence is stale, or the job has ended
	outcomeUnrecorded = "unrecorded"  // the outcome could not be recorded
)

// givenBack has the log messages of outcomes after which the unit runs again.
var givenBack = map[string]string{
	outcomeRetried:    "unit will be retried",
	outcomeWaiting:    "unit waits for an unavailable dependency",
	outcomeHandedBack: "unit is handed back",
}

// Handle claims the task's unit, runs it with heartbeats, and records the outcome. While Redis is unavailable the unit
// continues, and its outcome waits: only an answer of Redis decides that the unit is lost. Handle returns an error only
// when the worker stops meanwhile. The task is then delivered again and refused, because its fence is claimed; the unit
// runs again when the rescue finds it silent.
func (w *Worker) Handle(ctx context.Context, task queue.Task) error {
	unit := w.Logger.With("job_id", task.Job, "unit", task.Unit)
	log := unit.With("fence", task.Fence)
	arrived := time.Now()
	var lease export.Lease
	token := rand.Text() // distinguishes a repetition, after a lost answer, from another delivery of the task
	err := outlast(ctx, log, func() (err error) {
		lease, err = w.Jobs.Claim(ctx, task.Job, task.Unit, task.Kind, task.Fence, token)
		return err
	})
	switch {
	case errors.Is(err, export.ErrFenced), errors.Is(err, export.ErrNotLive), errors.Is(err, export.ErrConflict):
		log.Debug("task is a duplicate, late, or of an ended job", "err", err)
		w.metrics.fenced.Inc()
		return nil
	case err != nil:
		return err
	}
	log = telemetry.WithTrace(unit.With("fence", lease.Fence), lease.Trace)
	ctx, span := w.traceUnit(ctx, lease, task.Trace, arrived)
	w.metrics.busy.Inc()
	defer w.metrics.busy.Dec()
	log.Info("unit claimed", "kind", lease.Unit.Kind, "type", lease.Unit.Type, "attempt", lease.Failures+1)
	if lease.Unit.Short() {
		end := sync.OnceFunc(w.shortUnits.begin(lease.Job))
		// The plan and the references of a population are not short; other units must not be throttled for their whole duration.
		defer time.AfterFunc(shortUnitWindow, end).Stop()
		defer end()
	}
	began := time.Now()
	// Heartbeats continue while the outcome is recorded. Deferred, because run may panic: further heartbeats would prevent
	// the rescue of the unit.
	running, lose := context.WithCancelCause(ctx)
	recording, end := context.WithCancel(context.WithoutCancel(ctx))
	var heartbeats sync.WaitGroup
	defer heartbeats.Wait()
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(recordTimeout, end) })()
	heartbeats.Go(func() { lose(w.heartbeats(recording, lease)) })
	commit, runErr := w.run(running, log, lease)
	if cause := context.Cause(running); runErr != nil && cause != nil {
		runErr = cause // work that finished anyway is still committed
	}

	result := w.decide(recording, log, lease, commit, runErr)
	err = w.record(recording, log, lease, result, runErr)
	if lost, is := w.lost(recording, log, lease, err); is { // lost after decide
		result, err = lost, w.record(recording, log, lease, lost, nil)
	}
	if err != nil {
		result.name = outcomeUnrecorded
	}
	w.metrics.units.WithLabelValues(string(lease.Unit.Kind), lease.Unit.Type, result.name).Inc()
	w.metrics.duration.WithLabelValues(string(lease.Unit.Kind)).Observe(time.Since(began).Seconds())
	endUnit(span, commit.Result, result.name)
	log.Info("unit ended", "kind", lease.Unit.Kind, "type", lease.Unit.Type, "outcome", result.name,
		"attempt", lease.Failures+1, "seconds", time.Since(began).Seconds())
	return err
}

// outlast repeats a step while Redis is unavailable, until the context ends. The step must be safe to repeat.
func outlast(ctx context.Context, log *slog.Logger, step func() error) error {
	for told := false; ; {
		err := step()
		if !errors.Is(err, export.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		if !told {
			log.Warn("waiting for Redis", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(outlastEvery):
		}
	}
}

// OutlastKeys returns keys that wait while the job store cannot be reached, so that a unit can begin its next object. Other
// errors, such as that of a missing master key, are returned.
func OutlastKeys(keys objects.Keys, ping func(context.Context) error, log *slog.Logger) objects.Keys {
	return func(ctx context.Context, object string) (key []byte, err error) {
		_ = outlast(ctx, log, func() error {
			if key, err = keys(ctx, object); !errors.Is(err, export.ErrUnavailable) {
				return nil
			}
			if down := ping(ctx); down != nil {
				return down
			}
			key, err = keys(ctx, object)
			return nil
		})
		return key, err
	}
}

func (w *Worker) run(ctx context.Context, log *slog.Logger, lease export.Lease) (jobstore.Commit, error) {
	if lease.Failures >= w.cfg.MaxAttempts {
		return jobstore.Commit{}, export.Permanent("it was given up after %d attempts", lease.Failures)
	}
	var job export.Job
	err := outlast(ctx, log, func() (err error) { job, err = w.Jobs.Job(ctx, lease.Job); return err })
	if err != nil {
		return jobstore.Commit{}, err
	}
	if err := w.checkData(ctx, lease, job); err != nil {
		return jobstore.Commit{}, err
	}
	switch lease.Unit.Kind {
	case export.KindPlan:
		return w.plan(ctx, lease, job)
	case export.KindExport, export.KindExportAssociated:
		return w.export(ctx, lease, job)
	case export.KindResolveReferences:
		return w.resolveReferences(ctx, lease, job)
	case export.KindExportReferenced:
		return w.exportReferenced(ctx, lease, job)
	case export.KindSeal:
		return w.seal(ctx, lease, job)
	default:
		return jobstore.Commit{}, fmt.Errorf("unit of unknown kind %q", lease.Unit.Kind)
	}
}

// checkData returns an error unless the source has the data that the job was planned with.
func (w *Worker) checkData(ctx context.Context, lease export.Lease, job export.Job) error {
	if job.Data == "" || lease.Unit.Kind == export.KindSeal {
		return nil
	}
	sizes, err := w.Source.Sizes(ctx)
	if err != nil || sizes.Identity == job.Data {
		return err
	}
	const replaced = "the data was replaced after the export was planned"
	if lease.Failures+1 >= w.cfg.MaxAttempts {
		return export.Permanent(replaced)
	}
	return errors.New(replaced) // another worker may still have the data
}

// heartbeats renews the lease until the context ends, or a heartbeat is refused: then it returns ErrFenced or ErrNotLive.
func (w *Worker) heartbeats(ctx context.Context, lease export.Lease) error {
	ticker := time.NewTicker(w.cfg.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := w.Jobs.Heartbeat(ctx, lease)
		if errors.Is(err, export.ErrFenced) || errors.Is(err, export.ErrNotLive) {
			return err
		}
		// The unit continues while the job store is unreachable; if it is rescued meanwhile, its commit is refused.
	}
}

// stage stores the units that the lease's unit has cut, when Redis is available: cutting them may have taken minutes.
func (w *Worker) stage(ctx context.Context, lease export.Lease, units []export.Unit) error {
	return outlast(ctx, w.Logger.With("job_id", lease.Job, "unit", lease.Unit.ID), func() error {
		return w.Jobs.Stage(ctx, lease, units)
	})
}

// streamError returns the error of a stream, or else the cause of an ended context: after that, a stream that ends
// without an error is incomplete (pitfall 8).
func streamError(ctx context.Context, err error) error {
	if err == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// decide turns the result of a run into its outcome.
func (w *Worker) decide(
	ctx context.Context, log *slog.Logger, lease export.Lease, commit jobstore.Commit, runErr error,
) outcome {
	if lost, is := w.lost(ctx, log, lease, runErr); is {
		return lost
	}
	var permanent export.PermanentError
	switch {
	case runErr == nil:
		return outcome{name: outcomeDone, commit: commit}
	case errors.Is(runErr, queue.ErrDraining):
		return outcome{name: outcomeHandedBack, cause: export.CauseDraining}
	case errors.As(runErr, &permanent):
		return outcome{name: outcomeFailed, reason: permanent.Reason}
	case errors.Is(runErr, export.ErrUnavailable) && !(errors.Is(runErr, objects.ErrDenied) && w.Objects.Check(ctx) == nil):
		// An outage does not count as an attempt, because it may outlast any number of them. The scheduler ends a job that
		// waits too long.
		return outcome{name: outcomeWaiting, delay: w.cfg.OutageDelay, cause: export.CauseUnavailable}
	case lease.Failures+1 >= w.cfg.MaxAttempts:
		reason := fmt.Sprintf("its data could not be read or stored in %d attempts", lease.Failures+1)
		return outcome{name: outcomeFailed, reason: reason}
	}
	return outcome{name: outcomeRetried, delay: export.Backoff(lease.Failures + 1), cause: export.CauseError}
}

// lost reports whether the error means that the attempt has lost its unit: the fence is stale, or the job has ended or was
// purged. The objects of an attempt whose fence is stale are left to the sweep, which can distinguish a lost fence from a
// commit whose answer was lost.
func (w *Worker) lost(ctx context.Context, log *slog.Logger, lease export.Lease, err error) (outcome, bool) {
	switch {
	case errors.Is(err, export.ErrFenced):
		return outcome{name: outcomeLost}, true
	case errors.Is(err, export.ErrNotLive):
		return outcome{name: outcomeLost, ended: true}, true
	case errors.Is(err, export.ErrNotFound): // the job or an object
		var exists bool
		err := outlast(ctx, log, func() (err error) { exists, err = w.Jobs.Exists(ctx, lease.Job); return err })
		return outcome{name: outcomeLost, ended: true}, err == nil && !exists
	}
	return outcome{}, false
}

// record carries out the outcome. It returns ErrFenced, ErrNotLive or ErrNotFound when the attempt has lost its unit.
func (w *Worker) record(ctx context.Context, log *slog.Logger, lease export.Lease, result outcome, runErr error) error {
	switch result.name {
	case outcomeLost:
		if result.ended {
			return outlast(ctx, log, func() error { return w.lifecycle.PurgeLate(ctx, lease.Job) })
		}
		return nil
	case outcomeDone:
		return w.commit(ctx, log, lease, result.commit)
	case outcomeFailed:
		log.Error("unit failed for good", "err", runErr)
		return w.giveUp(ctx, log, lease, result.reason)
	default:
		log.Warn(givenBack[result.name], "err", runErr)
		return outlast(ctx, log, func() error { return w.lifecycle.Release(ctx, lease, result.delay, result.cause) })
	}
}

// commit closes the unit. Once the seal is committed the job's scaffolding is deleted.
func (w *Worker) commit(ctx context.Context, log *slog.Logger, lease export.Lease, commit jobstore.Commit) error {
	var issueErr error
	err := outlast(ctx, log, func() (err error) { issueErr, err = w.lifecycle.Commit(ctx, lease, commit); return err })
	if err != nil {
		return err
	}
	w.closed(ctx, log, lease.Job, issueErr)
	if commit.Seal != nil {
		w.metrics.jobs.WithLabelValues(jobCompleted).Inc()
		w.clear(ctx, lease.Job)
	}
	return nil
}

// closed updates the metrics after a unit was closed. If further units could not be issued, it goes on trying: a rescue
// would not find them before the silence of a lost worker is over.
func (w *Worker) closed(ctx context.Context, log *slog.Logger, job export.JobID, issueErr error) {
	w.metrics.committed.SetToCurrentTime()
	if issueErr == nil {
		return
	}
	err := outlast(ctx, log, func() error {
		issueErr = w.lifecycle.IssueAgain(ctx, job, issueErr)
		return issueErr
	})
	if err != nil {
		log.Warn("units are left to the rescue", "err", err)
	}
}

// giveUp closes a unit that failed for good. If it is the plan or the seal, the job fails, without a result. Any other
// unit becomes an entry of the manifest's error list, and the rest of the job continues (pitfalls 10, 21).
func (w *Worker) giveUp(ctx context.Context, log *slog.Logger, lease export.Lease, reason string) error {
	if lease.Unit.Kind == export.KindPlan || lease.Unit.Kind == export.KindSeal {
		var failed bool
		err := outlast(ctx, log, func() (err error) {
			failed, err = w.lifecycle.FailJobFrom(ctx, lease, "The export could not be done: "+reason+".")
			return err
		})
		if failed {
			w.metrics.jobs.WithLabelValues(jobFailed).Inc()
		}
		return err
	}
	var issueErr error
	err := outlast(ctx, log, func() (err error) { issueErr, err = w.lifecycle.CloseFailed(ctx, lease, reason); return err })
	if err != nil {
		return err
	}
	w.metrics.gaveUp.Inc()
	w.closed(ctx, log, lease.Job, issueErr)
	return nil
}
