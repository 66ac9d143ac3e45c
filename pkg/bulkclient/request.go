package bulkclient

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const (
	maxFailures = 8                // attempts in a row without any success before the client gives up
	maxOutcome  = 64 << 10         // bytes read of a refusal's body
	maxWait     = time.Hour        // the longest Retry-After that is followed
	shortCall   = 5 * time.Minute  // for a whole call other than a download
	cancelCall  = 10 * time.Second // for a cancel after an interrupt: somebody waits for their prompt
)

// ServerError is a refusal: an answer that is not the one the protocol wants.
type ServerError struct {
	Status     int          // the HTTP status code
	Issues     []fhir.Issue // of the OperationOutcome in the body, if there was one
	retryAfter string       // the header as it came
}

func (e *ServerError) Error() string {
	text := fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	for i, issue := range e.Issues {
		if i == 0 {
			text += ": "
		} else {
			text += "; "
		}
		text += Sentence(issue)
	}
	return text
}

// Sentence says an issue of an OperationOutcome in one line for people, without control characters.
func Sentence(issue fhir.Issue) string {
	text := printable(issue.Diagnostics)
	if text == "" {
		text = "no explanation given"
	}
	if code := printable(issue.Code); code != "" {
		text += " (" + code + ")"
	}
	if severity := printable(issue.Severity); severity != "" && severity != "error" {
		text = severity + ": " + text
	}
	return text
}

// printable makes text of a server fit for one line of a terminal.
func printable(text string) string {
	const most = 500
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "..."
	}
	return strings.TrimSpace(text)
}

// lostError is trouble on the way to the server: nobody knows whether the request arrived.
type lostError struct{ err error }

func (e lostError) Error() string { return "no answer from the server: " + e.err.Error() }
func (e lostError) Unwrap() error { return e.err }

// send makes a request with a token, when there are tokens and the request is to bear one. A token that the server
// refuses is replaced by a fresh one once (conformance B-39: exports outlive tokens). The caller closes the body.
func (c *Client) send(
	ctx context.Context, method string, target *url.URL, header http.Header, authorize bool,
) (*http.Response, error) {
	if !authorize || c.tokens == nil {
		return c.once(ctx, method, target, header, "")
	}
	if !sameOrigin(c.base, target) {
		return nil, ErrForeign
	}
	token, err := c.tokens.Token(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("get a token: %w", err)
	}
	resp, err := c.once(ctx, method, target, header, token)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	refused := refusal(resp)
	token, err = c.tokens.Token(ctx, token)
	if err != nil {
		return nil, errors.Join(refused, err)
	}
	return c.once(ctx, method, target, header, token)
}

func (c *Client) once(
	ctx context.Context, method string, target *url.URL, header http.Header, token string,
) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return nil, errors.New("the URL cannot be requested")
	}
	req.Header = header.Clone()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err == nil {
		return resp, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var of *url.Error
	if errors.As(err, &of) {
		err = of.Err // without the URL, whose query is nobody's business
	}
	var certificate *tls.CertificateVerificationError
	var redirected redirectError
	if errors.As(err, &certificate) || errors.As(err, &redirected) {
		return nil, err // no retry mends these
	}
	return nil, lostError{err}
}

// redirectError is a redirect that is not followed.
type redirectError string

func (e redirectError) Error() string { return string(e) }

// redirect follows a few redirects, as to a presigned URL (conformance F-12), and takes the token off the request as
// soon as it leaves the origin: the standard library would let it travel to another port and to subdomains.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return redirectError("the server redirects in circles")
	}
	if req.Method != http.MethodGet {
		return redirectError("the server redirects a " + req.Method)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return redirectError("the server redirects from https to a URL without it")
	}
	if !sameOrigin(c.base, req.URL) {
		req.Header.Del("Authorization")
	}
	return nil
}

// refusal reads what a server says about its refusal, and closes the body.
func refusal(resp *http.Response) error {
	refused := &ServerError{Status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutcome))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return refused // the status says what matters
	}
	refused.Issues = issues(body)
	return refused
}

// issues returns the issues of an OperationOutcome, nil when the body is none. A text in details stands in for
// missing diagnostics.
func issues(body []byte) []fhir.Issue {
	var outcome struct {
		ResourceType string
		Issue        []struct {
			fhir.Issue
			Details struct{ Text string }
		}
	}
	if json.Unmarshal(body, &outcome) != nil || outcome.ResourceType != "OperationOutcome" {
		return nil
	}
	found := make([]fhir.Issue, 0, len(outcome.Issue))
	for _, issue := range outcome.Issue {
		if issue.Diagnostics == "" {
			issue.Diagnostics = issue.Details.Text
		}
		found = append(found, issue.Issue)
	}
	return found
}

// retryIn says how long to wait before the attempt'th retry (from 1) after the error, or false if no retry mends it.
// The wait grows from retry to retry even when the server asks for less. unit is what a Retry-After of the job counts;
// polled says that the job's status was asked for, whose 429 belongs to the pace of polls and so is in that unit.
func retryIn(err error, attempt int, unit time.Duration, polled bool) (time.Duration, bool) {
	if attempt > maxFailures {
		return 0, false
	}
	var lost lostError
	if errors.As(err, &lost) {
		return export.Backoff(attempt), true
	}
	var refused *ServerError
	if !errors.As(err, &refused) || !refused.passing() {
		return 0, false
	}
	if !polled || refused.Status != http.StatusTooManyRequests {
		unit = outageUnit(refused.retryAfter, unit)
	}
	asked, _ := retryAfter(refused.retryAfter, unit)
	return max(asked, export.Backoff(attempt)), true
}

// outageUnit is what the Retry-After of a refusal counts that may be the server's, in the job's unit, or that of a proxy
// or of a server which does not know the job, in seconds (RFC 9110). Servers that count milliseconds ask for whole
// seconds of them, and nobody asks for a quarter of an hour: from 1000 on it is milliseconds.
func outageUnit(header string, unit time.Duration) time.Duration {
	n, err := strconv.ParseInt(strings.TrimSpace(header), 10, 64)
	if unit == time.Millisecond && err == nil && n >= int64(time.Second/time.Millisecond) {
		return time.Millisecond
	}
	return time.Second
}

// passing reports whether the refusal is about the moment and not about the request.
func (e *ServerError) passing() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return e.Status >= 500 && slices.ContainsFunc(e.Issues, func(issue fhir.Issue) bool { // conformance S-12
		return slices.Contains([]string{"transient", "lock-error", "no-store", "timeout", "throttled"}, issue.Code)
	})
}

// retryAfter reads a Retry-After header: an integer of the unit, or an HTTP-date. Whatever a server writes, the wait
// is at least a tenth of a second: a client that reads 0 must not spin (pitfall 30).
func retryAfter(header string, unit time.Duration) (time.Duration, bool) {
	const least = 100 * time.Millisecond
	header = strings.TrimSpace(header)
	if n, err := strconv.ParseInt(header, 10, 64); err == nil && n >= 0 {
		if n > int64(maxWait/unit) {
			return maxWait, true
		}
		return max(time.Duration(n)*unit, least), true
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(time.Until(at), least), maxWait), true
	}
	return 0, false
}
