package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

const (
	// startTimeout bounds recording and queueing a job. They continue when the client disconnects.
	startTimeout = 20 * time.Second
	// undoTimeout bounds the removal of a job that could not be queued.
	undoTimeout = 3 * time.Second
)

// Start records a job and queues its plan, if the owner is below the limit of live jobs. It calls record to record the
// kick-off with the returned id in the audit log, before the job exists; an error of record ends the start (ADR-0009).
//
// The id is that of the new job, or of a live job with the same request that the kick-off joins. FullError when the owner
// is at the limit. After any other error the record is removed, because a job whose id was never returned has no client
// (K-20, pitfall 34). If Redis cannot be reached, a rescue removes it. A job that turns out to be confirmed or begun has
// started: an identical kick-off may have joined it.
func (l *Lifecycle) Start(
	ctx context.Context, job export.Job, admission jobstore.Admission, record func(export.JobID) error,
) (id export.JobID, err error) {
	admitted, err := l.Store.Admit(ctx, job, admission)
	if err != nil {
		return "", err
	}
	if err := record(admitted); err != nil {
		return "", err
	}
	if admitted != job.ID {
		return admitted, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	admitted, err = l.Store.Create(ctx, job, export.FirstUnit(), admission)
	switch {
	case errors.As(err, &jobstore.FullError{}):
		return "", err // another kick-off reached the limit meanwhile; nothing was recorded
	case err != nil:
		return l.undo(ctx, job.ID, err) // it may be recorded: perhaps only the answer was lost
	case admitted != job.ID:
		return admitted, record(admitted) // an identical kick-off was faster
	}
	task := queue.Task{Kind: export.KindPlan, Job: job.ID, Unit: export.PlanUnit, Fence: jobstore.FirstFence, Trace: job.Trace}
	if err := l.enqueue(ctx, task); err != nil {
		return l.undo(ctx, job.ID, fmt.Errorf("enqueue the plan: %w: %w", export.ErrUnavailable, err))
	}
	err = l.Store.Queued(ctx, job.ID)
	if errors.Is(err, export.ErrNotFound) { // a rescue took the kick-off for one that had died
		err = fmt.Errorf("confirm job %s: %w: it was removed", job.ID, export.ErrUnavailable)
	}
	if err != nil {
		return l.undo(ctx, job.ID, err)
	}
	return job.ID, nil
}

// undo removes a job that could not be started, and returns the error that caused it. If the job has started after all, it
// returns the id.
func (l *Lifecycle) undo(ctx context.Context, id export.JobID, cause error) (export.JobID, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := l.Store.RemoveUnconfirmed(ctx, id)
	if errors.Is(err, export.ErrConflict) {
		return id, nil
	}
	if err != nil {
		err = fmt.Errorf("remove the job that could not be started: %w", err)
	}
	return "", errors.Join(cause, err)
}
