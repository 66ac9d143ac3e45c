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

// cancel ends the caller's job, finished or not (spec 5). The job is hidden before the response is sent; its objects are
// deleted later. A token that may not read the export may still cancel it, because the response discloses nothing.
func (s *service) cancel(c *gin.Context) error {
	job, err := s.ownJob(c)
	if err != nil {
		return err
	}
	if err := s.recordEvent(c, succeeded(audit.Cancel, job.ID, http.StatusAccepted)); err != nil {
		return err
	}
	// The cancel is audited: finish it even if the client disconnects.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), stepTimeout)
	defer cancel()
	queueErr, err := s.lifecycle.Cancel(ctx, job.ID)
	if errors.Is(err, export.ErrConflict) || errors.Is(err, export.ErrNotFound) {
		return notAvailable() // expired or purged since it was read
	}
	if err != nil {
		return fmt.Errorf("cancelling job %s: %w", job.ID, err)
	}
	if queueErr != nil { // the scheduler purges cancelled jobs in any case
		keepError(c, queueErr)
	}
	writeHeader(c, http.StatusAccepted)
	return nil
}
