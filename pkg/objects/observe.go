package objects

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// observed tells the observer of each request: of an upload how long it took altogether, of a download how long it was
// until the answer began.
type observed struct {
	inner   http.RoundTripper
	observe telemetry.Observer
}

// RoundTrip implements http.RoundTripper.
func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	resp, err := o.inner.RoundTrip(r)
	told := err
	if err == nil && (resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests) {
		told = fmt.Errorf("the store answers %d", resp.StatusCode)
	}
	o.observe.Observe(operationOf(r), began, told)
	return resp, err
}

// operationOf is the class of a request: what it costs the store, roughly.
func operationOf(r *http.Request) string {
	query := r.URL.Query()
	switch r.Method {
	case http.MethodHead:
		return "head"
	case http.MethodGet:
		if query.Has("list-type") || query.Has("uploads") || query.Has("location") {
			return "list"
		}
		return "read"
	case http.MethodDelete:
		return "delete"
	case http.MethodPost:
		if query.Has("delete") {
			return "delete"
		}
		return "upload" // begin or complete one of several parts
	default:
		return "write"
	}
}
