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
	// startTimeout bounds recording and queueing a job. They go on when the client hangs up.
	startTimeout = 20 * time.Second
	// undoTimeout bounds the removal of a job that could not be queued.
	undoTimeout = 3 * time.Second
)

// Start records a job and queues its plan, if the owner has a place for it. record puts the kick-off of the returned id in
// the audit log; it is called before the job exists, and its error ends the start (ADR-0009).
//
// The id is the job's own, or that of a live job with the same request that it joins. FullError when the owner has no
// place. After any other error neither record nor task is left, as far as Redis can be reached: a recorded job without a
// task would be polled for a long time (K-20, pitfall 34), and one whose id was never returned would run for no client.
// With joinErr the job has started, but identical kick-offs can join it only when its plan is claimed.
func (l *Lifecycle) Start(
	ctx context.Context, job export.Job, admission jobstore.Admission, record func(export.JobID) error,
) (id export.JobID, joinErr, err error) {
	admitted, err := l.Store.Admit(ctx, job, admission)
	if err != nil {
		return "", nil, err
	}
	if err := record(admitted); err != nil {
		return "", nil, err
	}
	if admitted != job.ID {
		return admitted, nil, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	admitted, err = l.Store.Create(ctx, job, export.FirstUnit(), admission)
	switch {
	case errors.As(err, &jobstore.FullError{}):
		return "", nil, err // another kick-off took the place meanwhile; nothing was recorded
	case err != nil:
		return "", nil, l.undo(ctx, job.ID, err) // it may be recorded all the same: only the answer may be lost
	case admitted != job.ID:
		return admitted, nil, record(admitted) // an identical kick-off came between
	}
	task := queue.Task{Kind: export.KindPlan, Job: job.ID, Unit: export.PlanUnit, Fence: jobstore.FirstFence, Trace: job.Trace}
	if err := l.enqueue(ctx, task); err != nil {
		return "", nil, l.undo(ctx, job.ID, fmt.Errorf("enqueue the plan: %w: %w", export.ErrUnavailable, err))
	}
	if admission.Join {
		joinErr = l.Store.Queued(ctx, job.ID)
	}
	return job.ID, joinErr, nil
}

// undo removes a job that could not be started, and returns the error that caused it.
func (l *Lifecycle) undo(ctx context.Context, id export.JobID, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := l.Store.Remove(ctx, id); err != nil {
		return errors.Join(cause, fmt.Errorf("remove the job that could not be started: %w", err))
	}
	return cause
}
