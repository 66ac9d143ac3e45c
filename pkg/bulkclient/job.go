package bulkclient

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Job is an export that the server has accepted.
type Job struct {
	StatusURL string // absolute
	IG        bool   // was kicked off with Prefer: respond-async

	young bool // was kicked off by this client, and no poll has found it yet
}

// unit returns the unit of the Retry-After of a 202 (spec 3 and 9). Everywhere else the unit is the second.
func (j Job) unit() time.Duration {
	if j.IG {
		return time.Second
	}
	return time.Millisecond
}

// ID returns the id of the job: a parameter of its status URL such as _jobId, or else the last segment of its path.
func (j Job) ID() string {
	location, err := url.Parse(j.StatusURL)
	if err != nil {
		return ""
	}
	for name, values := range location.Query() {
		if strings.Contains(strings.ToLower(name), "job") {
			return printable(values[0])
		}
	}
	return printable(path.Base(location.Path))
}

// KickOff starts an export. It retries while the server is too busy, but not after a lost connection: the server may
// have accepted the request, and a retry would make a second job. A server of the IG that refuses a kick-off without
// Prefer: respond-async gets it: see [Config].
func (c *Client) KickOff(ctx context.Context, request Request) (Job, error) {
	kickOff, err := request.kickOff(c.base)
	if err != nil {
		return Job{}, fmt.Errorf("kick off the export: %w", err)
	}
	ig := c.cfg.IG
	for attempt := 1; ; attempt++ {
		if prefer := request.prefer(ig); prefer != "" {
			kickOff.header.Set("Prefer", prefer)
		}
		location, err := c.kickOff(ctx, kickOff)
		if err == nil {
			return Job{StatusURL: location, IG: ig, young: true}, nil
		}
		var refused *ServerError
		switch {
		case errors.As(err, &refused) && !ig && refused.wantsPrefer():
			ig, err = true, nil
		case errors.As(err, &refused) && refused.Status != http.StatusInternalServerError: // as with a lost connection
			err = c.retry(ctx, err, attempt)
		}
		if err != nil {
			return Job{}, fmt.Errorf("kick off the export: %w", err)
		}
	}
}

// wantsPrefer reports whether a kick-off was refused because it had no Prefer: respond-async. It made no job then.
func (e *ServerError) wantsPrefer() bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusNotAcceptable, http.StatusPreconditionFailed, http.StatusExpectationFailed,
		http.StatusUnprocessableEntity, http.StatusPreconditionRequired:
		text := strings.ToLower(e.Error())
		return strings.Contains(text, "prefer") || strings.Contains(text, "async")
	}
	return false
}

func (c *Client) kickOff(ctx context.Context, k kickOffRequest) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	resp, err := c.send(ctx, k.method, k.target.String(), k.header, k.body, true)
	if err != nil {
		return "", err
	}
	given := cmp.Or(resp.Header.Get("Content-Location"), resp.Header.Get("Location"))
	switch {
	case resp.StatusCode == http.StatusAccepted:
	case resp.StatusCode == http.StatusOK && given != "": // the job is complete already
	case resp.StatusCode == http.StatusOK:
		return "", errors.Join(errors.New("the server answered 200 with a result instead of 202 with a Content-Location: "+
			"it does not export asynchronously"), resp.Body.Close())
	default:
		return "", refusal(resp)
	}
	if err := resp.Body.Close(); err != nil { // a body has no meaning
		return "", fmt.Errorf("close the response: %w", err)
	}
	location, err := k.target.Parse(given)
	if err != nil || given == "" {
		return "", errors.New("the server accepted the request, but its Content-Location is not a URL")
	}
	if err := allowed(location, c.base); err != nil {
		return "", fmt.Errorf("the server accepted the request, but its Content-Location: %w", err)
	}
	return location.String(), nil
}

// ErrNoJob means that a job does not exist, or belongs to another subject.
var ErrNoJob = errors.New("there is no such export, or it belongs to another subject")

// Cancel cancels the job, or deletes a finished one. It returns ErrNoJob for an unknown one.
func (c *Client) Cancel(ctx context.Context, job Job) error {
	resp, err := c.send(ctx, http.MethodDelete, job.StatusURL, http.Header{"Accept": {"application/fhir+json"}}, nil, true)
	if err == nil {
		switch resp.StatusCode {
		case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
			err = resp.Body.Close()
		case http.StatusNotFound, http.StatusGone:
			err = errors.Join(ErrNoJob, resp.Body.Close())
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

// Await polls until the job is complete, at the pace that the server sets, and returns its manifest. Lost connections
// and temporary refusals are retried a few times in a row; any other refusal is an error. A job that was just kicked off
// may be unknown for some seconds, where a server's answers come from several machines.
func (c *Client) Await(ctx context.Context, job Job) (*Manifest, error) {
	const unknown = 4 // 404s of a young job: 15 s
	failures := 0
	for polls := 1; ; polls++ {
		manifest, status, err := c.Poll(ctx, job, polls)
		var refused *ServerError
		switch {
		case job.young && failures < unknown && errors.As(err, &refused) && refused.Status == http.StatusNotFound:
			failures++
			err = c.sleep(ctx, export.Backoff(failures))
		case err != nil:
			failures++
			err = c.retry(ctx, err, failures)
		case manifest != nil:
			return manifest, nil
		default:
			failures, job.young = 0, false
			c.cfg.Observer.Polled(status)
			err = c.sleep(ctx, status.Next)
		}
		if err != nil {
			return nil, fmt.Errorf("check the export: %w", err)
		}
	}
}

// pages awaits the other pages of a manifest and joins them to it. A page may be ready later than the one before (P-39).
func (c *Client) pages(ctx context.Context, job Job, manifest *Manifest) error {
	signed, seen := len(manifest.pages) > 0, map[string]bool{job.StatusURL: true}
	for manifest.Next != "" {
		if seen[manifest.Next] {
			return malformed("its pages are a circle")
		}
		seen[manifest.Next] = true
		next, err := c.Await(ctx, Job{StatusURL: manifest.Next, IG: job.IG})
		if err != nil {
			return fmt.Errorf("the next page of the manifest: %w", err)
		}
		if signed != (len(next.pages) > 0) {
			return malformed("only some of its pages are signed")
		}
		if err := manifest.join(next); err != nil {
			return err
		}
	}
	return nil
}

// Poll polls once. The manifest is nil while the job is not complete; it is the first page if it has a Next. polls counts
// the polls: without a Retry-After their interval grows.
func (c *Client) Poll(ctx context.Context, job Job, polls int) (*Manifest, Status, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, job.StatusURL, http.Header{"Accept": {"application/json"}}, nil, true)
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
	body, raw := &failing{in: resp.Body}, &bytes.Buffer{}
	var in io.Reader = body
	signature := resp.Header.Get(signatureHeader)
	if !isSigned(signature) {
		signature = ""
	} else {
		in = io.TeeReader(body, raw)
	}
	manifest, err := readManifest(in, resp.Request.URL) // the URL after redirects, if any
	err = errors.Join(err, resp.Body.Close())
	if body.err != nil {
		return nil, Status{}, lost(ctx, body.err)
	}
	if err != nil {
		return nil, Status{}, err
	}
	for _, item := range manifest.items() {
		item.Local = nil // set by this client, never by the server
	}
	if signature != "" {
		manifest.pages = []page{{raw.Bytes(), signature}}
	}
	return manifest, Status{}, nil
}

// failing keeps the error of a reader, so that a lost connection is told from a document that is cut.
type failing struct {
	in  io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

var percent = regexp.MustCompile(`(\d{1,3})\s*%`)

// classicStates are the values of X-Progress of the documented service (spec 3), whose Retry-After is in milliseconds.
var classicStates = []string{"", "scheduled", "started", "completed"}

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
	if unit == time.Millisecond && !slices.Contains(classicStates, status.State) {
		unit = time.Second // another server, which took the kick-off without Prefer
	}
	var given bool
	if status.Next, given = retryAfter(header, unit); !given {
		status.Next = export.Backoff(min(polls, longest))
	}
	return status
}
