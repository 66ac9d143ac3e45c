package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// cancel ends the caller's job, finished or not (spec 5). The job is gone when the answer is out; its objects follow.
// A token that may not read the export may still end it: nothing of it is disclosed.
func (s *service) cancel(c *gin.Context) error {
	job, err := s.ownJob(c)
	if err != nil {
		return err
	}
	if err := s.recordEvent(c, succeeded(audit.Cancel, job.ID, http.StatusAccepted)); err != nil {
		return err
	}
	// It is on record, so it is done, also when the client has hung up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), stepTimeout)
	defer cancel()
	if err := s.end(ctx, job.ID); err != nil {
		return err
	}
	// The cancel is recorded and the scheduler purges cancelled jobs in any case: this only makes it sooner.
	if err := s.Queue.EnqueuePurge(ctx, job.ID); err != nil {
		keepError(c, fmt.Errorf("enqueueing the purge of job %s: %w", job.ID, err))
	}
	// Its place among the subject's jobs at work is free from here on. Without this it would be once the record says so, or,
	// when a purge has removed that by then, after a minute: what has no record may be a job that is being started.
	if err := s.Jobs.Withdraw(ctx, job); err != nil {
		keepError(c, fmt.Errorf("giving the place of job %s back: %w", job.ID, err))
	}
	c.Status(http.StatusAccepted)
	c.Writer.WriteHeaderNow()
	return nil
}

// end cancels a job that was the caller's a moment ago.
func (s *service) end(ctx context.Context, id export.JobID) error {
	err := s.Jobs.Cancel(ctx, id, s.now())
	if errors.Is(err, export.ErrConflict) {
		// The store repeats a step whose answer was lost, and a step that was done finds its own traces. A job that
		// stands as cancelled is what was asked for, whoever did it. Otherwise the expiry came first.
		job, again := s.Jobs.Job(ctx, id)
		if again == nil && job.State == export.Cancelled {
			return nil
		}
		if again != nil && !errors.Is(again, export.ErrNotFound) {
			return fmt.Errorf("reading job %s again: %w", id, again)
		}
		return notAvailable()
	}
	if errors.Is(err, export.ErrNotFound) {
		return notAvailable() // purged since it was read
	}
	if err != nil {
		return fmt.Errorf("cancelling job %s: %w", id, err)
	}
	return nil
}
