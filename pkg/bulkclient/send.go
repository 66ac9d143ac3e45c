package bulkclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

const (
	maxOutcome = 64 << 10         // bytes read of the body of a refusal
	shortCall  = 5 * time.Minute  // limit of a whole call other than a download
	cancelCall = 10 * time.Second // limit of the cancel after an interrupt: the user is waiting
)

// ServerError is a response with a status code that the protocol does not expect.
type ServerError struct {
	Status int          // the HTTP status code
	Issues []fhir.Issue // of the OperationOutcome in the body, if there was one
	text   string       // of another body: its begin as one line
	retry  http.Header  // Retry-After and Date
}

func (e *ServerError) Error() string {
	texts := make([]string, 0, len(e.Issues))
	for _, issue := range e.Issues {
		texts = append(texts, describe(issue))
	}
	if len(texts) == 0 && e.text != "" {
		texts = append(texts, e.text)
	}
	text := fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	if len(texts) > 0 {
		text += ": " + strings.Join(texts, "; ")
	}
	return text
}

// describe returns an issue of an OperationOutcome as one line without control characters.
func describe(issue fhir.Issue) string {
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

// printable returns text of a server as one bounded line without control characters.
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

// lostError is a failure of the connection: the request may or may not have arrived.
type lostError struct{ err error }

func (e lostError) Error() string { return "no answer from the server: " + e.err.Error() }
func (e lostError) Unwrap() error { return e.err }

// lost classifies an error of the transport. It removes the URL, whose query must not be logged.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	var certificate *tls.CertificateVerificationError
	var redirected redirectError
	if errors.As(err, &certificate) || errors.As(err, &redirected) {
		return err // a retry cannot help
	}
	return lostError{err}
}

// send makes a request, with a token if authorize and the client has a token source. A token that the server refuses is
// replaced by a fresh one once (conformance B-39: exports outlive tokens). The caller closes the body.
func (c *Client) send(
	ctx context.Context, method, target string, header http.Header, body []byte, authorize bool,
) (*http.Response, error) {
	if !authorize || c.cfg.Tokens == nil {
		return c.sendOnce(ctx, method, target, header, body, "")
	}
	if !SameOrigin(c.base.String(), target) {
		return nil, fmt.Errorf("%w: %s", ErrForeignOrigin, originOf(target))
	}
	token, err := c.cfg.Tokens.Token(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("get a token: %w", err)
	}
	resp, err := c.sendOnce(ctx, method, target, header, body, token)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	refused := refusal(resp)
	token, err = c.cfg.Tokens.Token(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("%w; %w", refused, err)
	}
	return c.sendOnce(ctx, method, target, header, body, token)
}

func (c *Client) sendOnce(
	ctx context.Context, method, target string, header http.Header, body []byte, token string,
) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the URL cannot be requested")
	}
	req.Header = header.Clone()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, lost(ctx, err)
	}
	return resp, nil
}

// redirectError is a redirect that is not followed.
type redirectError string

func (e redirectError) Error() string { return string(e) }

// redirect follows a few redirects, as to a presigned URL (conformance F-12), and removes the token when the request
// leaves the origin: the standard library keeps it for other ports and for subdomains.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return redirectError("too many redirects")
	}
	if method := via[0].Method; method != http.MethodGet { // a redirected POST can become a GET without its parameters
		return redirectError("the server redirects a " + method)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return redirectError("the server redirects from https to plain http")
	}
	if !SameOrigin(c.base.String(), req.URL.String()) {
		req.Header.Del("Authorization")
	}
	return nil
}

// refusal returns the response as a ServerError, and closes the body.
func refusal(resp *http.Response) error {
	refused := &ServerError{Status: resp.StatusCode, retry: resp.Header}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutcome))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return refused // the status is enough
	}
	if refused.Issues = issues(body); refused.Issues == nil {
		refused.text = textOf(body)
	}
	return refused
}

var htmlTitle = regexp.MustCompile(`(?is)<(?:title|h1)[^>]*>([^<]*)<`)

// textOf returns the start of the body of a refusal that is not an OperationOutcome, or the title of a page.
func textOf(body []byte) string {
	const most = 200
	text := string(body)
	if strings.HasPrefix(strings.TrimSpace(text), "<") {
		found := htmlTitle.FindStringSubmatch(text)
		if found == nil {
			return ""
		}
		text = found[1]
	}
	if text = printable(strings.Join(strings.Fields(text), " ")); len([]rune(text)) > most {
		text = string([]rune(text)[:most]) + "..."
	}
	return text
}

// issues returns the issues of an OperationOutcome, nil if the body is not one. The text of details replaces missing
// diagnostics.
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

const (
	maxFailures = 8         // consecutive failures before the client gives up
	maxWait     = time.Hour // the longest Retry-After that the client waits for
)

// retry waits before the next attempt after the attempt'th failure in a row (from 1). It returns err if a retry cannot
// help.
func (c *Client) retry(ctx context.Context, err error, attempt int) error {
	wait, ok := retryIn(err, attempt)
	if !ok {
		return err
	}
	c.cfg.Observer.Waiting(err, wait)
	return c.sleep(ctx, wait)
}

// retryIn returns the wait before the attempt'th retry (from 1), or false if a retry cannot help. The wait grows from retry
// to retry even if the server sends a shorter Retry-After, which is in seconds with a refusal (spec 7).
func retryIn(err error, attempt int) (time.Duration, bool) {
	if attempt > maxFailures {
		return 0, false
	}
	var lost lostError
	if errors.As(err, &lost) {
		return export.Backoff(attempt), true
	}
	var refused *ServerError
	if !errors.As(err, &refused) || !refused.temporary() {
		return 0, false
	}
	asked, _ := retryAfter(refused.retry, time.Second)
	return max(asked, export.Backoff(attempt)), true
}

func (e *ServerError) temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return true
	case http.StatusInternalServerError:
		if e.Issues == nil { // a crash, not the server's word on the export
			return true
		}
	}
	for _, issue := range e.Issues { // conformance S-12
		transient := []string{"transient", "lock-error", "no-store", "timeout", "throttled"}
		if e.Status >= 500 && slices.Contains(transient, issue.Code) {
			return true
		}
	}
	return false
}

// retryAfter reads the Retry-After of a response: an integer of the unit, or an HTTP-date, which counts from the server's
// own Date. The wait is at least 100 ms, so that a Retry-After of 0 does not make a busy loop, and a date that has passed
// counts as none (pitfall 30).
func retryAfter(header http.Header, unit time.Duration) (time.Duration, bool) {
	const least = 100 * time.Millisecond
	text := strings.TrimSpace(header.Get("Retry-After"))
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		n = min(n, int64(maxWait/unit))
		return max(time.Duration(n)*unit, least), true
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0, false
	}
	now, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	if wait := at.Sub(now); wait > 0 {
		return min(max(wait, least), maxWait), true
	}
	return 0, false
}
