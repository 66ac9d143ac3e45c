package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
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
// asked are the patients of the parameter `patient`: ids, ascending, each once; nil: the job is not limited to any. Start
// stores them and sets job.Request.Asked. The list is written after the record, which has the key that it is encrypted
// with, and before the plan is queued. No list is written for a kick-off that joins a job.
//
// The id is that of the new job, or of a live job with the same request that the kick-off joins. FullError when the owner
// is at the limit. After any other error the record is removed, because a job whose id was never returned has no client
// (K-20, pitfall 34). If Redis cannot be reached, a rescue removes it. A job that turns out to be confirmed or begun has
// started: an identical kick-off may have joined it.
func (l *Lifecycle) Start(
	ctx context.Context, job export.Job, asked []string, admission jobstore.Admission, record func(export.JobID) error,
) (id export.JobID, err error) {
	list := describe(&job, asked)
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
		return l.undo(ctx, job, err) // it may be recorded: perhaps only the answer was lost
	case admitted != job.ID:
		return admitted, record(admitted) // an identical kick-off was faster
	}
	if err := l.storeAsked(ctx, job, list); err != nil {
		return l.undo(ctx, job, err)
	}
	task := queue.Task{Kind: export.KindPlan, Job: job.ID, Unit: export.PlanUnit, Fence: jobstore.FirstFence, Trace: job.Trace}
	if err := l.enqueue(ctx, task); err != nil {
		return l.undo(ctx, job, fmt.Errorf("enqueue the plan: %w: %w", export.ErrUnavailable, err))
	}
	err = l.Store.Queued(ctx, job.ID)
	if errors.Is(err, export.ErrNotFound) { // a rescue took the kick-off for one that had died
		err = fmt.Errorf("confirm job %s: %w: it was removed", job.ID, export.ErrUnavailable)
	}
	if err != nil {
		return l.undo(ctx, job, err)
	}
	return job.ID, nil
}

// describe sets the job's description of the asked patients and returns their list as it is stored.
func describe(job *export.Job, asked []string) []byte {
	if asked == nil {
		return nil
	}
	list := []byte(strings.Join(asked, "\n") + "\n")
	sum := sha256.Sum256(list)
	job.Request.Asked = &export.Asked{
		Key: export.AskedKey(job.ID), Patients: int64(len(asked)), SHA256: hex.EncodeToString(sum[:]),
	}
	return list
}

// storeAsked writes the list of the asked patients, if there is one.
func (l *Lifecycle) storeAsked(ctx context.Context, job export.Job, list []byte) error {
	if job.Request.Asked == nil {
		return nil
	}
	object := l.Objects.Create(ctx, job.Request.Asked.Key, "text/plain")
	_, err := object.Write(list)
	if err == nil {
		_, err = object.Commit()
	}
	if err != nil {
		return fmt.Errorf("store the list of patients: %w", errors.Join(err, object.Abort()))
	}
	return nil
}

// undo removes a job that could not be started with its list of patients, and returns the error that caused it. If the job
// has started after all, it returns the id. If the record cannot be removed the list is kept: the job may have started, and
// another kick-off joined it. The sweep deletes the list of a job without a record.
func (l *Lifecycle) undo(ctx context.Context, job export.Job, cause error) (export.JobID, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := l.Store.RemoveUnconfirmed(ctx, job.ID)
	switch {
	case errors.Is(err, export.ErrConflict):
		return job.ID, nil
	case err == nil && job.Request.Asked != nil:
		err = l.Objects.Delete(ctx, job.Request.Asked.Key)
	}
	if err != nil {
		err = fmt.Errorf("remove the job that could not be started: %w", err)
	}
	return "", errors.Join(cause, err)
}
