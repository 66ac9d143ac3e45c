package httpapi

import (
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// What a kick-off is asked to wait while the intake is paused: as long as the pause lasts, within these bounds, or, when
// nobody has said how long, the first.
const (
	pauseWait        = time.Minute
	shortestPause    = 5 * time.Second
	longestPauseWait = time.Hour // a client has to notice when it is resumed earlier
)

// takesJobs refuses kick-offs while an operator has the intake paused (docs/operating.md). It comes before anything is
// counted: a client that tries again as it is told must not be limited for it. Why it is paused is no client's business.
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
		text: "The intake of new exports is paused. Exports at work go on. Try again as the header Retry-After says.",
		// In seconds, as for every answer that is not about a job.
		header: map[string]string{"Retry-After": retryAfter(export.IG, wait)},
	}
}
