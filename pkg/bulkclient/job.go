package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Request is what to export: the data of a group's members.
type Request struct {
	Group string   // the Group's id
	Types []string // resource types; none: every type that the token allows
}

// Job is an export that the server has accepted.
type Job struct {
	StatusURL string // absolute
	IG        bool   // was kicked off with Prefer: respond-async
}

// unit returns the unit of the job's Retry-After (spec 3 and 9).
func (j Job) unit() time.Duration {
	if j.IG {
		return time.Second
	}
	return time.Millisecond
}

// KickOff starts an export. It retries while the server is too busy, but not after a lost connection: the server may
// have accepted the request, and a retry would make a second job.
func (c *Client) KickOff(ctx context.Context, request Request) (Job, error) {
	target := c.base.JoinPath("Group", request.Group, "$export")
	if len(request.Types) > 0 {
		target.RawQuery = "_type=" + url.QueryEscape(strings.Join(request.Types, ","))
	}
	header := http.Header{"Accept": {"application/fhir+json"}}
	if c.cfg.IG {
		header.Set("Prefer", "respond-async")
	}
	for attempt := 1; ; attempt++ {
		location, err := c.kickOff(ctx, target, header)
		if err == nil {
			return Job{StatusURL: location, IG: c.cfg.IG}, nil
		}
		var refused *ServerError
		if errors.As(err, &refused) {
			err = c.retry(ctx, err, attempt, time.Second, false)
		}
		if err != nil {
			return Job{}, fmt.Errorf("kick off the export: %w", err)
		}
	}
}

func (c *Client) kickOff(ctx context.Context, target *url.URL, header http.Header) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, target.String(), header, true)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted {
		return "", refusal(resp)
	}
	if err := resp.Body.Close(); err != nil {
		return "", fmt.Errorf("close the response: %w", err)
	}
	given := resp.Header.Get("Content-Location")
	location, err := target.Parse(given)
	if err != nil || given == "" {
		return "", errors.New("the server accepted the request, but its Content-Location is not a URL")
	}
	if !isWeb(location) {
		return "", errors.New("the server accepted the request, but its Content-Location is not an http URL")
	}
	return location.String(), nil
}

// Cancel cancels the job, or deletes a finished one. A job that no longer exists is not an error.
func (c *Client) Cancel(ctx context.Context, job Job) error {
	resp, err := c.send(ctx, http.MethodDelete, job.StatusURL, http.Header{"Accept": {"application/fhir+json"}}, true)
	if err == nil {
		switch resp.StatusCode {
		case http.StatusOK, http.StatusAccepted, http.StatusNoContent, http.StatusNotFound:
			err = resp.Body.Close()
		default:
			err = refusal(resp)
		}
	}
	if err != nil {
		return fmt.Errorf("cancel the export: %w", err)
	}
	return nil
}

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
			c.cfg.Observer.Polled(status)
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
