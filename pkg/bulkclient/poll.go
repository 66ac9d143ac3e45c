package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Status is the progress that the server reports.
type Status struct {
	State   string        // X-Progress: scheduled, started or completed; any text from other servers
	Percent int           // 0 to 100, -1 when unknown
	Next    time.Duration // until the next poll
}

// maxManifest bounds the body of a finished status: about 1 million files.
const maxManifest = 256 << 20

// Await polls until the job is complete, at the pace that the server sets, and returns its manifest. Lost connections
// and temporary refusals are retried a few times in a row; any other refusal is an error.
func (c *Client) Await(ctx context.Context, job Job) (*Manifest, error) {
	failures := 0
	for polls := 1; ; polls++ {
		manifest, status, err := c.poll(ctx, job, polls)
		switch {
		case err != nil:
			failures++
			err = c.retry(ctx, err, failures, job.unit(), true)
		case manifest != nil:
			return manifest, nil
		default:
			failures = 0
			c.observer.Polled(status)
			err = c.sleep(ctx, status.Next)
		}
		if err != nil {
			return nil, fmt.Errorf("check the export: %w", err)
		}
	}
}

// poll polls once. The manifest is nil while the job is not complete.
func (c *Client) poll(ctx context.Context, job Job, polls int) (*Manifest, Status, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, job.StatusURL, http.Header{"Accept": {"application/json"}}, true)
	if err != nil {
		return nil, Status{}, err
	}
	switch resp.StatusCode {
	case http.StatusAccepted:
		status := statusOf(resp.Header, job.unit(), polls)
		if err := resp.Body.Close(); err != nil {
			return nil, Status{}, lostError{err}
		}
		return nil, status, nil
	case http.StatusOK:
	default:
		return nil, Status{}, refusal(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, Status{}, lost(ctx, err)
	}
	if len(body) > maxManifest {
		return nil, Status{}, errors.New("the manifest is too long")
	}
	manifest := &Manifest{}
	if err := readManifest(body, manifest); err != nil {
		return nil, Status{}, err
	}
	for _, item := range manifest.items() {
		item.Local = nil // set by this client, never by the server
	}
	return manifest, Status{}, nil
}

var percent = regexp.MustCompile(`(\d{1,3})\s*%`)

// statusOf reads the headers of a 202. Without a Retry-After the interval grows from 1 s to 16 s.
func statusOf(header http.Header, unit time.Duration, polls int) Status {
	const longest = 5 // Backoff of 16 s
	status := Status{State: printable(header.Get("X-Progress")), Percent: -1}
	number := header.Get("X-Progress-Percent")
	if found := percent.FindStringSubmatch(status.State); number == "" && found != nil {
		number = found[1]
	}
	if n, err := strconv.Atoi(number); err == nil && n >= 0 && n <= 100 {
		status.Percent = n
	}
	var given bool
	if status.Next, given = retryAfter(header.Get("Retry-After"), unit); !given {
		status.Next = export.Backoff(min(polls, longest))
	}
	return status
}
