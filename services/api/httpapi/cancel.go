package httpapi

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// cancel ends the caller's job, finished or not (SPEC 5). The job is gone when the answer is out; its objects follow.
// A token that may not read the export may still end it: nothing of it is disclosed.
func (s *service) cancel(c *gin.Context) error {
	job, err := s.ownJob(c)
	if err != nil {
		return err
	}
	err = s.Jobs.Cancel(c.Request.Context(), job.ID, s.now())
	if errors.Is(err, export.ErrNotFound) || errors.Is(err, export.ErrConflict) {
		return notAvailable() // somebody else's DELETE or the expiry came first
	}
	if err != nil {
		return fmt.Errorf("cancelling job %s: %w", job.ID, err)
	}
	// The cancel is recorded and the scheduler purges cancelled jobs in any case: this only makes it sooner.
	if err := s.Queue.EnqueuePurge(c.Request.Context(), job.ID); err != nil {
		keepError(c, fmt.Errorf("enqueueing the purge of job %s: %w", job.ID, err))
	}
	c.Status(http.StatusAccepted)
	c.Writer.WriteHeaderNow()
	return nil
}
