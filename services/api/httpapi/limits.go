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

// Limits bound what one subject may ask for, whichever of the API's replicas it asks: they are counted in the job store.
// A client that does one thing at a time and waits as Retry-After says is never refused for having asked too often, with
// Statuses at least StatusesOfAJob for each of Jobs. Zero means the default.
type Limits struct {
	Jobs     int  // exports of a subject at work at once; 5
	Join     bool // a kick-off identical to one whose export is at work gets that one's status URL, and starts nothing
	KickOffs int  // kick-offs in a minute, of those that could have started a job; 60
	Statuses int  // answers about its own jobs in a minute; 600
}

// StatusesOfAJob is how many status answers in a minute a client gets of one job that it polls as told.
const StatusesOfAJob = 40

// fullWait is the shortest wait of a subject that has as many exports at work as it may have.
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

// What is counted, as it stands in the job store.
const (
	countedKickOffs = "kickoff"
	countedStatuses = "status"
)

// limitKickOffs refuses a subject that kicks off too often. Retry-After is in seconds whatever the dialect, as for every
// answer that is not about a job: RFC 9110 is all that such a client can go by.
func (s *service) limitKickOffs(c *gin.Context) error {
	return s.limit(c, countedKickOffs, s.limits.KickOffs, "",
		"Exports were kicked off too often: wait as the header Retry-After says.")
}

// limitStatuses refuses a subject that asks about its jobs too often, with the interval in the dialect of the job.
func (s *service) limitStatuses(c *gin.Context, job export.Job) error {
	return s.limit(c, countedStatuses, s.limits.Statuses, job.Request.Dialect,
		"The status of exports was asked for too often: wait as the header Retry-After says.")
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

// full says which exports are at work: they are the caller's own. The wait is that of the export that asks for the
// shortest one; there is no telling when one of them ends.
func (s *service) full(ctx context.Context, running []export.JobID) error {
	const told = 10     // in an answer
	wait := longestPoll // at least fullWait, so that trying again stays within the limit of kick-offs
	var urls []string
	for _, id := range running[:min(len(running), told)] {
		job, err := s.Jobs.Job(ctx, id)
		if err != nil && !errors.Is(err, export.ErrNotFound) { // the latter is being started, or was purged just now
			return fmt.Errorf("reading job %s: %w", id, err)
		}
		if err == nil {
			wait = min(wait, pollInterval(s.now().Sub(job.Created)))
			urls = append(urls, s.statusURL(id))
		}
	}
	text := fmt.Sprintf("This client has as many exports at work as it may have at once: %d.", len(running))
	if len(urls) > 0 {
		text += " Wait for one to end, or cancel one: " + strings.Join(urls, " ")
	}
	return tooMuch(text, "", max(wait, fullWait))
}
