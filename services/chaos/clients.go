package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// client is a registered client of the token service, which exports again and again.
type client struct {
	id      string
	number  int // of several with one id
	system  *system
	truth   *truth
	events  *events
	bulk    *bulkclient.Client
	tokens  bulkclient.TokenSource
	choose  *rand.Rand
	dir     string
	folders int
	copied  copied
	waiting atomic.Bool  // after a failure
	live    atomic.Int64 // when its job was surely live: it was accepted, or a poll said so; nanoseconds
	job     atomic.Value // URL of that job
}

// As the observer of its bulk client, a client notes whether it waits, and when its job was live.

// Started notes that the job was accepted, unless it is continued.
func (c *client) Started(job bulkclient.Job) {
	c.waiting.Store(false)
	if c.job.Swap(job.StatusURL) != job.StatusURL {
		c.live.Store(time.Now().UnixNano())
	}
}

// Polled notes that the job runs.
func (c *client) Polled(bulkclient.Status) {
	c.waiting.Store(false)
	c.live.Store(time.Now().UnixNano())
}

// Planned: it does not wait.
func (c *client) Planned([]bulkclient.File) { c.waiting.Store(false) }

// Advanced: it does not wait.
func (c *client) Advanced(bulkclient.File, int64, int64) { c.waiting.Store(false) }

// Finished: it does not wait.
func (c *client) Finished(bulkclient.File) { c.waiting.Store(false) }

// Waiting: it does.
func (c *client) Waiting(error, time.Duration) { c.waiting.Store(true) }

// eager calls do with a context that ends when a fault has ended and the bulk client waits: after long outages it waits for
// up to a minute, and nothing would run meanwhile. The caller repeats the call.
func (c *client) eager(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.events.nextMended():
				if c.waiting.Load() {
					cancel()
				}
			}
		}
	}()
	return do(ctx)
}

func (s *system) newClient(id string, number int, t *truth) (*client, error) {
	c := &client{
		id: id, number: number, system: s, truth: t, events: s.events,
		dir:    filepath.Join(s.dir, fmt.Sprint("client-", id, "-", number)),
		choose: rand.New(rand.NewPCG(s.opts.seed, uint64(100*number+int(id[0])))), //nolint:gosec // it must be reproducible
	}
	auth := s.links.between("client", toAuth)[0]
	endpoint := "http://" + auth.address() + "/auth/token"
	var err error
	c.tokens, err = bulkclient.NewTokenSource(bulkclient.Credentials{
		Base: s.front.base(), TokenURL: endpoint, Scope: "system/*.rs", Now: time.Now,
		// The token service knows its public URL.
		Assert: func(string) (string, error) { return s.signers[id].SignAssertion(id, tokenURL, time.Now()) },
	})
	if err != nil {
		return nil, err
	}
	c.bulk, err = bulkclient.New(bulkclient.Config{
		Base: s.front.base(), Tokens: c.tokens, IG: number%2 == 0, Parallel: 2, Observer: c,
	})
	return c, err
}

// run visits until done is closed; the last visit is finished.
func (c *client) run(ctx context.Context, done <-chan struct{}) {
	defer c.bulk.Close()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		default:
		}
		outcome, err := c.visit(ctx)
		if ctx.Err() != nil {
			return // the run has ended early, for a reason that it tells
		}
		if err != nil {
			outcome = "violation"
			c.events.violated("%s: %v", c.id, err)
		}
		c.events.visited(outcome)
		_ = pause(ctx, time.Duration(c.choose.IntN(500))*time.Millisecond)
	}
}

// fresh returns a new folder.
func (c *client) fresh() string {
	c.folders++
	return filepath.Join(c.dir, fmt.Sprint(c.folders))
}

// forget removes a folder.
func (c *client) forget(dir string) {
	if err := os.RemoveAll(dir); err != nil {
		c.events.violated("%s: remove a folder: %v", c.id, err)
	}
}

// The answers to a client that has a job.
var (
	errGone   = errors.New("404")
	errFailed = errors.New("the job failed")
)

// classify tells what an error of the bulk client means. Everything else than errGone, errFailed and a mismatch is a
// refusal or a lost connection: the client tries again.
func classify(err error) error {
	var refused *bulkclient.ServerError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bulkclient.ErrNoJob), errors.As(err, &refused) && refused.Status == http.StatusNotFound:
		return fmt.Errorf("%w: %w", errGone, err)
	case errors.As(err, &refused) && refused.Status == http.StatusInternalServerError && len(refused.Issues) > 0:
		return fmt.Errorf("%w: %w", errFailed, err)
	}
	return err
}

// kickOff kicks off and notes the job.
func (c *client) kickOff(ctx context.Context, q *question) (bulkclient.Job, error) {
	job, err := c.bulk.KickOff(ctx, q.request)
	if err == nil {
		c.Started(job)
	}
	return job, err
}

// request sends a request with the client's token.
func (c *client) request(ctx context.Context, method, target string, header http.Header) (*http.Response, error) {
	token, err := c.tokens.Token(ctx, "")
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return http.DefaultClient.Do(req)
}
