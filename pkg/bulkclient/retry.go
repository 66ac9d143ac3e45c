package bulkclient

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	maxFailures = 8         // consecutive failures before the client gives up
	maxWait     = time.Hour // the longest Retry-After that is followed
)

// retry waits before the next attempt after the attempt'th failure in a row (from 1). It returns err if a retry cannot
// help. See retryIn for unit and polled.
func (c *Client) retry(ctx context.Context, err error, attempt int, unit time.Duration, polled bool) error {
	wait, ok := retryIn(err, attempt, unit, polled)
	if !ok {
		return err
	}
	c.observer.Waiting(err, wait)
	return c.sleep(ctx, wait)
}

// retryIn returns the wait before the attempt'th retry (from 1), or false if a retry cannot help. The wait grows from
// retry to retry even when the server asks for less. unit is the unit of the job's Retry-After. A 429 to a poll of the
// job's status (polled) uses it as well.
func retryIn(err error, attempt int, unit time.Duration, polled bool) (time.Duration, bool) {
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
	if !polled || refused.Status != http.StatusTooManyRequests {
		unit = outageUnit(refused.retryAfter, unit)
	}
	asked, _ := retryAfter(refused.retryAfter, unit)
	return max(asked, export.Backoff(attempt)), true
}

// outageUnit guesses the unit of a Retry-After that comes either from the server, in the job's unit, or from a proxy,
// in seconds (RFC 9110). A server that uses milliseconds sends at least 1000; seconds that many are not plausible.
func outageUnit(header string, unit time.Duration) time.Duration {
	n, err := strconv.ParseInt(strings.TrimSpace(header), 10, 64)
	if unit == time.Millisecond && err == nil && n >= 1000 {
		return time.Millisecond
	}
	return time.Second
}

// temporary reports whether the same request can succeed later.
func (e *ServerError) temporary() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	for _, issue := range e.Issues { // conformance S-12
		transient := []string{"transient", "lock-error", "no-store", "timeout", "throttled"}
		if e.Status >= 500 && slices.Contains(transient, issue.Code) {
			return true
		}
	}
	return false
}

// retryAfter parses a Retry-After header: an integer of the unit, or an HTTP-date. The wait is at least 100 ms, so that
// a Retry-After of 0 does not make a busy loop (pitfall 30).
func retryAfter(header string, unit time.Duration) (time.Duration, bool) {
	const least = 100 * time.Millisecond
	header = strings.TrimSpace(header)
	if n, err := strconv.ParseInt(header, 10, 64); err == nil && n >= 0 {
		n = min(n, int64(maxWait/unit))
		return max(time.Duration(n)*unit, least), true
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(time.Until(at), least), maxWait), true
	}
	return 0, false
}
