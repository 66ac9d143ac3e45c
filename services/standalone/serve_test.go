package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// The one listener of a standalone server has the metrics as long as only this machine reaches it, and every other
// path is the API's, as it came.
func TestMetricsAreForThisMachine(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name+" "+r.URL.Path) })
	}
	for _, row := range []struct{ ip, path, want string }{
		{"127.0.0.1", "/metrics", "private /metrics"},
		{"::1", "/metrics", "private /metrics"},
		{"127.0.0.1", "/metrics/", "public /metrics/"},
		{"127.0.0.1", "/debug/pprof/", "public /debug/pprof/"},
		{"127.0.0.1", "/readyz", "public /readyz"},
		{"127.0.0.1", "/fhir//Group/../x", "public /fhir//Group/../x"},
		{"0.0.0.0", "/metrics", "public /metrics"},
		{"::", "/metrics", "public /metrics"},
		{"192.0.2.1", "/metrics", "public /metrics"},
	} {
		handler := withMetrics(&net.TCPAddr{IP: net.ParseIP(row.ip)}, named("public"), named("private"))
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, row.path, nil))
		if got := recorder.Body.String(); recorder.Code != http.StatusOK || got != row.want {
			t.Errorf("%s on %s: %d %q, want %q", row.path, row.ip, recorder.Code, got, row.want)
		}
	}
}
