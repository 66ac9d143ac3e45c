package httpapi

import (
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Retry-After while kick-offs are paused: the rest of the pause, within bounds.
const (
	pauseWait        = time.Minute // for a pause without an end
	shortestPause    = 5 * time.Second
	longestPauseWait = time.Hour // a pause may be resumed earlier
)

// takesJobs refuses kick-offs while they are paused (docs/operating.md). It comes before the limits: a client that obeys
// Retry-After must not be limited for it. Clients do not see the reason of the pause.
func (s *service) takesJobs(c *gin.Context) error {
	pause, paused, err := s.Jobs.KickoffsPaused(c.Request.Context())
	if err != nil || !paused {
		return err
	}
	wait := pauseWait
	if !pause.Until.IsZero() {
		wait = min(max(pause.Until.Sub(s.now()), shortestPause), longestPauseWait)
	}
	return refusal{
		status: http.StatusServiceUnavailable, code: "transient",
		text: "New exports are paused. Running exports continue. Retry after the time in the header Retry-After.",
		// In seconds, like every answer that is not about a job.
		header: map[string]string{"Retry-After": retryAfter(export.IG, wait)},
	}
}
