package tokenapi

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// problem is a refusal: RFC 6749 section 5.2. Its text is ours alone and never holds what was sent.
type problem struct {
	status    int
	code      string        // error
	text      string        // error_description
	retry     time.Duration // Retry-After, when more than zero
	challenge bool          // of HTTP Basic
	cause     error         // for the log
	ours      bool          // it says nothing about who asked: it is no failed authentication
}

func (p *problem) because(err error) *problem {
	p.cause = err
	return p
}

func invalidRequest(format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, code: "invalid_request", text: fmt.Sprintf(format, args...)}
}

// unauthenticated is the one answer to a client that could not prove who it is, whatever the reason: it is not
// registered, or by another method, its keys cannot be had, or the proof is wrong or was used before.
func unauthenticated(basic bool, cause error) *problem {
	p := &problem{
		status: http.StatusBadRequest, code: "invalid_client", text: "the client could not be authenticated", cause: cause,
	}
	if basic { // RFC 6749 5.2 demands 401 with a challenge of the scheme that was used
		p.status, p.challenge = http.StatusUnauthorized, true
	}
	return p
}

// limited answers too many failures. There is no word for it in RFC 6749, and they are failures of authentication.
func limited(wait time.Duration) *problem {
	return &problem{
		status: http.StatusTooManyRequests, code: "invalid_client", retry: wait,
		text: "too many authentications have failed: wait as long as Retry-After says",
	}
}

// unavailable answers what only time mends. The word is that of RFC 6749 section 4.1.2.1: 5.2 knows none for 503.
func unavailable(cause error) *problem {
	const retry = 5 * time.Second
	return &problem{
		status: http.StatusServiceUnavailable, code: "temporarily_unavailable", retry: retry, cause: cause,
		text: "the token service cannot reach something that it needs: try again later",
	}
}

func broken(cause error) *problem {
	return &problem{
		status: http.StatusInternalServerError, code: "server_error", cause: cause,
		text: "the token service has failed; its log says why",
	}
}

func notFound() *problem {
	return &problem{status: http.StatusNotFound, code: "invalid_request", text: "there is nothing at this path"}
}

func notAllowed(w http.ResponseWriter, allow string) *problem {
	w.Header().Set("Allow", allow)
	return &problem{
		status: http.StatusMethodNotAllowed, code: "invalid_request", text: "the method is not one of Allow",
	}
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
	_ = json.NewEncoder(w).Encode(body) // the client has gone: there is nobody to tell
}
