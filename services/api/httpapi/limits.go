package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Limits bound the requests of one subject over all replicas of the API: they are counted in the job store. A client that
// obeys Retry-After is never refused if Statuses is at least StatusesOfAJob for each of Jobs. Zero means the default.
type Limits struct {
	Jobs     int  // running exports at once; 5
	Join     bool // a kick-off identical to that of a running export gets its status URL and starts nothing
	KickOffs int  // kick-offs per minute, of those that could have started a job; 60
	Statuses int  // answers about its own jobs per minute; 600
}

// StatusesOfAJob is how often a client that obeys Retry-After polls one job in a minute, at most.
const StatusesOfAJob = 40

// fullWait is the shortest Retry-After for a subject whose places are all taken.
const fullWait = 5 * time.Second

// limitWindow is the window in which requests are counted.
const limitWindow = time.Minute

func (l Limits) withDefaults() (Limits, error) {
	for _, limit := range []struct {
		name    string
		value   *int
		standby int
	}{
		{"jobs", &l.Jobs, 5}, {"kick-offs", &l.KickOffs, 60}, {"statuses", &l.Statuses, 600},
	} {
		if *limit.value < 0 {
			return l, fmt.Errorf("limit of %s %d is negative", limit.name, *limit.value)
		}
		if *limit.value == 0 {
			*limit.value = limit.standby
		}
	}
	return l, nil
}

// The names of the counters in the job store.
const (
	countedKickOffs = "kickoff"
	countedStatuses = "status"
)

// limitKickOffs refuses a subject that kicks off too often. Retry-After is in seconds in both dialects, as for every answer
// that is not about a job (RFC 9110).
func (s *service) limitKickOffs(c *gin.Context) error {
	return s.limit(c, countedKickOffs, s.limits.KickOffs, "",
		"Too many kick-offs. Retry after the time in the header Retry-After.")
}

// limitStatuses refuses a subject that polls its jobs too often, with Retry-After in the dialect of the job.
func (s *service) limitStatuses(c *gin.Context, job export.Job) error {
	return s.limit(c, countedStatuses, s.limits.Statuses, job.Request.Dialect,
		"Too many status requests. Retry after the time in the header Retry-After.")
}

func (s *service) limit(c *gin.Context, what string, limit int, dialect export.Dialect, text string) error {
	wait, err := s.Jobs.Allow(c.Request.Context(), what, principalOf(c).Owner, limitWindow, limit)
	if err != nil || wait == 0 {
		return err
	}
	return tooMuch(text, dialect, wait)
}

// tooMuch is a 429 (spec 7, K-15 and S-05).
func tooMuch(text string, dialect export.Dialect, wait time.Duration) refusal {
	return refusal{
		status: http.StatusTooManyRequests, code: "throttled", text: text,
		header: map[string]string{"Retry-After": retryAfter(dialect, wait)},
	}
}

// full is the 429 that names the caller's running exports. Retry-After is the shortest poll interval among them, since
// their ends cannot be predicted.
func (s *service) full(ctx context.Context, running []export.JobID) error {
	const listed = 10   // in an answer
	wait := longestPoll // at least fullWait, so that trying again stays within the limit of kick-offs
	var urls []string
	for _, id := range running[:min(len(running), listed)] {
		job, err := s.Jobs.Job(ctx, id)
		if err != nil && !errors.Is(err, export.ErrNotFound) { // it may have been purged meanwhile
			return fmt.Errorf("reading job %s: %w", id, err)
		}
		if err == nil {
			wait = min(wait, pollInterval(s.now().Sub(job.Created)))
			urls = append(urls, s.statusURL(id))
		}
	}
	text := fmt.Sprintf("This client has the maximum number of running exports: %d.", len(running))
	if len(urls) > 0 {
		text += " Wait for one to end, or cancel one: " + strings.Join(urls, " ")
	}
	return tooMuch(text, "", max(wait, fullWait))
}
