package objects

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// observed reports each request: the whole duration of an upload, and the time to the first byte of a download.
type observed struct {
	inner   http.RoundTripper
	observe telemetry.Observer
}

// RoundTrip implements http.RoundTripper.
func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	resp, err := o.inner.RoundTrip(r)
	failed := err
	if err == nil && (resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests) {
		failed = fmt.Errorf("the store returned status %d", resp.StatusCode)
	}
	o.observe.Observe(operationOf(r), began, failed)
	return resp, err
}

// operationOf returns the class of a request for the metrics.
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
		return "upload" // begin or complete a multipart upload
	default:
		return "write"
	}
}
