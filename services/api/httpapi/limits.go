package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Limits bound the requests of one subject over all replicas of the API, by counters in the job store.
type Limits struct {
	// status polls allowed within one announced interval
	PollLimit int `env:"POLL_LIMIT" envDefault:"10"`
	JobLimit  int `env:"JOB_LIMIT" envDefault:"5"` // running exports of one subject
	// an identical kick-off starts a new job (new), or returns the running one (same)
	Repeat string `env:"KICKOFF_REPEAT" envDefault:"new"`
	// kick-offs of one subject per minute, over all replicas
	KickOffLimit int `env:"KICKOFF_LIMIT" envDefault:"60"`
	// status answers to one subject per minute, over all replicas, and as many reads and searches of groups; at least 40
	// for each of JOB_LIMIT
	StatusLimit int `env:"STATUS_LIMIT" envDefault:"600"`
	// finished exports that one subject holds until they expire or are deleted
	FinishedLimit int `env:"FINISHED_LIMIT" envDefault:"200"`
	// bytes of finished exports in the object store with which one subject may kick off
	StoredLimit int64 `env:"STORED_LIMIT" envDefault:"1099511627776"`
	// downloads of files of one subject at once, in each replica, and as many of manifests
	DownloadLimit int `env:"DOWNLOAD_LIMIT" envDefault:"16"`
}

// The response to a kick-off identical to that of a running export.
const (
	repeatNew  = "new"  // a job of its own
	repeatSame = "same" // the status URL of the running job
)

// statusesOfAJob is the most polls of one job in a minute by a client that obeys Retry-After.
const statusesOfAJob = 40

// Validate returns every problem. A client that obeys Retry-After must never be refused.
func (l Limits) Validate() error {
	err := l.check()
	if l.StatusLimit < l.JobLimit*statusesOfAJob {
		err = errors.Join(err, fmt.Errorf("SLUICE_STATUS_LIMIT must be at least %d for each of SLUICE_JOB_LIMIT: clients that "+
			"obey Retry-After would be refused", statusesOfAJob))
	}
	return err
}

// check returns every problem that New refuses.
func (l Limits) check() (err error) {
	for name, limit := range map[string]int{
		"POLL": l.PollLimit, "JOB": l.JobLimit, "KICKOFF": l.KickOffLimit, "STATUS": l.StatusLimit,
		"DOWNLOAD": l.DownloadLimit, "FINISHED": l.FinishedLimit, "STORED": int(l.StoredLimit),
	} {
		if limit < 1 {
			err = errors.Join(err, fmt.Errorf("SLUICE_%s_LIMIT must be at least 1", name))
		}
	}
	if l.Repeat != repeatNew && l.Repeat != repeatSame {
		err = errors.Join(err, errors.New("SLUICE_KICKOFF_REPEAT must be new or same"))
	}
	return err
}

// fullWait is the shortest Retry-After for a subject whose places are all taken.
const fullWait = 5 * time.Second

// limitWindow is the window in which requests are counted.
const limitWindow = time.Minute

// limit counts a request of the subject under the name, and refuses it beyond the limit.
func (s *service) limit(c *gin.Context, what, plural string, limit int) error {
	wait, err := s.Jobs.Allow(c.Request.Context(), what, principalOf(c).Owner, limitWindow, limit)
	if err != nil || wait == 0 {
		return err
	}
	text := fmt.Sprintf("Too many %s: the limit is %d a minute. Wait for the time in the header Retry-After.", plural, limit)
	return tooMuch(text, wait)
}

// tooMuch is a 429 (spec 7, K-15 and S-05).
func tooMuch(text string, wait time.Duration) refusal {
	return refused(http.StatusTooManyRequests, "throttled", text, "Retry-After", inUnits(wait, time.Second))
}

// full is the 429 that names the caller's running exports. Retry-After is the shortest poll interval among them, since
// their ends cannot be predicted.
func (s *service) full(ctx context.Context, running []export.JobID) error {
	const listed = 10   // in an answer
	wait := longestPoll // at least fullWait, so that retries stay within the limit of kick-offs
	var urls []string
	for _, id := range running[:min(len(running), listed)] {
		job, err := s.Jobs.Job(ctx, id)
		if err != nil && !errors.Is(err, export.ErrNotFound) { // it may have been purged meanwhile
			return fmt.Errorf("reading job %s: %w", id, err)
		}
		if err == nil {
			wait = min(wait, pollInterval(s.Now().Sub(job.Created)))
			urls = append(urls, s.statusURL(id))
		}
	}
	text := fmt.Sprintf("This client has the maximum number of running exports: %d.", len(running))
	if len(urls) > 0 {
		text += " Wait for one to end, or cancel one: " + strings.Join(urls, " ")
	}
	return tooMuch(text, max(wait, fullWait))
}

// longestHold is the longest Retry-After for a subject that holds too much: it may delete an export at any time.
const longestHold = time.Hour

// checkQuota refuses a new export while its owner holds too many finished ones or too many bytes of them, or while Redis
// has too little memory left. Each finished export holds about 1.3 kB of Redis for each file until it expires.
func (s *service) checkQuota(ctx context.Context, owner export.Owner) error {
	if err := s.Jobs.Room(ctx); err != nil {
		return err
	}
	held, err := s.Jobs.Held(ctx, owner)
	if err != nil {
		return err
	}
	var text string
	switch {
	case held.Finished >= s.FinishedLimit:
		text = fmt.Sprintf("This client has the maximum number of finished exports: %d (FINISHED_LIMIT).", s.FinishedLimit)
	case held.Stored >= s.StoredLimit:
		text = fmt.Sprintf("The finished exports of this client have the maximum size: %d of %d bytes (STORED_LIMIT).",
			held.Stored, s.StoredLimit)
	default:
		return nil
	}
	text += fmt.Sprintf(" Delete one that is no longer needed, or wait until it expires. The first expires %s: %s",
		httpDate(held.Expires), s.statusURL(held.First))
	return tooMuch(text, min(max(held.Expires.Sub(s.Now()), fullWait), longestHold))
}

// downloads counts the running downloads of each subject in this process. Each holds a connection to the store and about
// half a megabyte, here and in the kernel, for as long as its client reads. Manifests are counted apart from files: a
// client that downloads as many files as it may still gets the status of its other exports.
type downloads struct {
	what    string
	mu      sync.Mutex
	running map[export.Owner]int
}

// begin counts a download until end is called, or returns the 429.
func (d *downloads) begin(owner export.Owner, most int) (end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[owner] >= most {
		text := fmt.Sprintf("This client has the maximum number of concurrent downloads of %s: %d. Finish one first.",
			d.what, most)
		return nil, tooMuch(text, fullWait)
	}
	d.running[owner]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.running[owner]--; d.running[owner] == 0 {
			delete(d.running, owner)
		}
	}, nil
}

// Bounds of Retry-After while kick-offs are paused. Between them it is the rest of the pause.
const (
	pauseWait        = time.Minute // for a pause without an end
	shortestPause    = 5 * time.Second
	longestPauseWait = time.Hour // a pause may be resumed earlier
)

// refuseWhilePaused refuses kick-offs while they are paused (docs/operating.md). It precedes the limits: refused
// kick-offs must not count against a client that obeys Retry-After. Clients do not see the reason of the pause.
func (s *service) refuseWhilePaused(c *gin.Context) error {
	pause, paused, err := s.Jobs.KickoffsPaused(c.Request.Context())
	if err != nil || !paused {
		return err
	}
	wait := pauseWait
	if !pause.Until.IsZero() {
		wait = min(max(pause.Until.Sub(s.Now()), shortestPause), longestPauseWait)
	}
	return refused(http.StatusServiceUnavailable, "transient",
		"New exports are paused. Running exports continue. Wait for the time in the header Retry-After.",
		"Retry-After", inUnits(wait, time.Second))
}
