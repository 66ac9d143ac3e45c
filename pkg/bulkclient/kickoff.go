package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
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

// unit is the unit of the job's Retry-After (spec 3 and 9).
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
	if c.ig {
		header.Set("Prefer", "respond-async")
	}
	for attempt := 1; ; attempt++ {
		location, err := c.kickOff(ctx, target, header)
		if err == nil {
			return Job{StatusURL: location, IG: c.ig}, nil
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
		return "", errors.New("the server accepted, but its Content-Location is not a URL")
	}
	if !isWeb(location) {
		return "", errors.New("the server accepted, but its Content-Location is not an http URL")
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
