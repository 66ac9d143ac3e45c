package objects

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

func TestRequestsAreObserved(t *testing.T) {
	answer := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(answer) }))
	var seen []string
	watched := observed{http.DefaultTransport, func(operation string, _ time.Time, err error) {
		if err != nil {
			operation += " failed"
		}
		seen = append(seen, operation)
	}}
	ask := func(method, path string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := watched.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	for _, request := range [][2]string{
		{"HEAD", "/b"}, {"GET", "/b/key"}, {"GET", "/b?list-type=2&prefix=p"}, {"GET", "/b?uploads"}, {"PUT", "/b/key"},
		{"PUT", "/b/key?partNumber=1&uploadId=u"}, {"POST", "/b/key?uploads"}, {"POST", "/b/key?uploadId=u"},
		{"POST", "/b?delete"}, {"DELETE", "/b/key"},
	} {
		ask(request[0], request[1])
	}
	for _, answer = range []int{http.StatusNotFound, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		ask("GET", "/b/key")
	}
	server.Close()
	ask("GET", "/b/key")
	want := []string{
		"head", "read", "list", "list", "write", "write", "upload", "upload", "delete", "delete",
		"read", "read failed", "read failed", "read failed",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %v\nwant %v", seen, want)
	}
}
