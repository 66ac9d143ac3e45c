package bulkclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Status is how far the server says it is.
type Status struct {
	State   string        // X-Progress: scheduled, started, completed; any text of other servers
	Percent int           // 0 to 100, -1 when the server does not say
	Next    time.Duration // until the next check
}

// Manifest lists the files of a finished export (spec 3).
type Manifest struct {
	TransactionTime     string `json:"transactionTime"`
	Request             string `json:"request"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	Output              []Item `json:"output"`
	Deleted             []Item `json:"deleted"`
	Error               []Item `json:"error"`
}

// Item is one file of a manifest.
type Item struct {
	Type  string  `json:"type"`
	URL   string  `json:"url"`
	Count *int64  `json:"count,omitempty"` // lines; nil when the server does not say
	Local *Stored `json:"local,omitempty"` // only in the manifest.json of a folder: what was stored
}

// maxManifest bounds the body of a finished status: some 1 million files.
const maxManifest = 256 << 20

// Await polls until the job is complete, at the pace that the server asks for, and returns its manifest. A refusal
// that passes and a lost connection are outlasted a few times in a row; any other refusal ends the wait.
func (c *Client) Await(ctx context.Context, job Job) (*Manifest, error) {
	target, err := url.Parse(job.StatusURL)
	if err != nil {
		return nil, errors.New("check the export: the status URL is not a URL")
	}
	failures := 0
	for polls := 1; ; polls++ {
		manifest, status, err := c.poll(ctx, target, job, polls)
		wait := status.Next
		switch {
		case err != nil:
			failures++
			var again bool
			if wait, again = retryIn(err, failures, job.unit(), true); !again {
				return nil, fmt.Errorf("check the export: %w", err)
			}
			c.observer.Waiting(err, wait)
		case manifest != nil:
			return manifest, nil
		default:
			failures = 0
			c.observer.Polled(status)
		}
		if err := c.sleep(ctx, wait); err != nil {
			return nil, fmt.Errorf("wait for the export: %w", err)
		}
	}
}

// poll asks once. The manifest is nil while the job is not complete.
func (c *Client) poll(ctx context.Context, target *url.URL, job Job, polls int) (*Manifest, Status, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	header := http.Header{"Accept": {"application/json"}}
	resp, err := c.send(ctx, http.MethodGet, target, header, true)
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
		if ctx.Err() != nil {
			return nil, Status{}, context.Cause(ctx)
		}
		return nil, Status{}, lostError{err}
	}
	if len(body) > maxManifest {
		return nil, Status{}, errors.New("the manifest is too long")
	}
	if err := checkManifest(body); err != nil {
		return nil, Status{}, err
	}
	var manifest Manifest
	if err := json.Unmarshal(body, &manifest); err != nil {
		return nil, Status{}, fmt.Errorf("%w: the manifest cannot be read: %w", ErrMismatch, err)
	}
	for _, list := range [][]Item{manifest.Output, manifest.Deleted, manifest.Error} {
		for i := range list {
			list[i].Local = nil // ours, not the server's
		}
	}
	return &manifest, Status{}, nil
}

// checkManifest refuses a JSON document that is no manifest, ErrMismatch. What else a proxy or another server answers with
// 200 must not be taken for the manifest of an export without files.
func checkManifest(text []byte) error {
	var manifest struct {
		TransactionTime     string             `json:"transactionTime"`
		Request             string             `json:"request"`
		RequiresAccessToken *bool              `json:"requiresAccessToken"`
		Output              *[]json.RawMessage `json:"output"`
		Error               *[]json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return fmt.Errorf("%w: it is no manifest: %w", ErrMismatch, err)
	}
	var missing string
	_, err := time.Parse(time.RFC3339, manifest.TransactionTime)
	switch {
	case err != nil:
		missing = "transactionTime"
	case manifest.Request == "":
		missing = "request"
	case manifest.RequiresAccessToken == nil:
		missing = "requiresAccessToken"
	case manifest.Output == nil:
		missing = "output"
	case manifest.Error == nil:
		missing = "error"
	default:
		return nil
	}
	return fmt.Errorf("%w: it is no manifest: its %s is missing or wrong", ErrMismatch, missing)
}

var percent = regexp.MustCompile(`(\d{1,3})\s*%`)

// statusOf reads the headers of a 202. A server that names no Retry-After is asked after 1 s, then less and less
// often, at least every 16 s.
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
	next, asked := retryAfter(header.Get("Retry-After"), unit)
	if !asked {
		next = export.Backoff(min(polls, longest))
	}
	status.Next = next
	return status
}
