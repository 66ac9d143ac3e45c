package tokenapi

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// problem is a refusal (RFC 6749 section 5.2). Its text never contains input of the request.
type problem struct {
	status    int
	code      string        // error
	text      string        // error_description
	retry     time.Duration // Retry-After, when more than zero
	challenge bool          // of HTTP Basic
	rule      token.Rule    // of a failed authentication: for the log, the metric and the audit log, never for the client
	cause     error         // for the log
}

func invalidRequest(text string) *problem {
	return &problem{status: http.StatusBadRequest, code: "invalid_request", text: text}
}

// unauthenticated returns the same response for every failed authentication: the client is unknown or has another method,
// its keys cannot be fetched, or the proof is wrong or was used before.
func unauthenticated(basic bool, rule token.Rule, cause error) *problem {
	p := &problem{
		status: http.StatusBadRequest, code: "invalid_client", text: "the client could not be authenticated",
		rule: rule, cause: cause,
	}
	if basic { // RFC 6749 5.2 requires 401 with a challenge for the scheme that was used
		p.status, p.challenge = http.StatusUnauthorized, true
	}
	return p
}

// limited refuses a request after too many wrong secrets. RFC 6749 has no code for this.
func limited(wait time.Duration) *problem {
	return &problem{
		status: http.StatusTooManyRequests, code: "invalid_client", retry: wait,
		text: "too many wrong secrets: wait for Retry-After seconds",
	}
}

// unavailable reports a temporary failure. Its code is from RFC 6749 section 4.1.2.1, because 5.2 has none for 503.
func unavailable(cause error) *problem {
	const retry = 5 * time.Second
	return &problem{
		status: http.StatusServiceUnavailable, code: "temporarily_unavailable", retry: retry, cause: cause,
		text: "a dependency of the token service is unavailable: try again later",
	}
}

func broken(cause error) *problem {
	return &problem{
		status: http.StatusInternalServerError, code: "server_error", cause: cause,
		text: "internal error of the token service",
	}
}

func notAllowed(w http.ResponseWriter, allow string) *problem {
	w.Header().Set("Allow", allow)
	return &problem{status: http.StatusMethodNotAllowed, code: "invalid_request", text: "method not allowed"}
}

func (p *problem) write(w http.ResponseWriter) {
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retry.Seconds()))))
	}
	if p.challenge {
		w.Header().Set("WWW-Authenticate", `Basic realm="sluice", charset="UTF-8"`)
	}
	writeJSON(w, p.status, map[string]string{"error": p.code, "error_description": p.text})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only if the client has disconnected
}
