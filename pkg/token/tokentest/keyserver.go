package tokentest

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// KeyServer serves a key set, or any other response that a test sets, and counts the requests.
type KeyServer struct {
	*httptest.Server
	asked   atomic.Int64
	handler atomic.Pointer[http.HandlerFunc]
}

// ServeKeys starts a server that ends with the test.
func ServeKeys(t testing.TB, body string) *KeyServer {
	t.Helper()
	s := &KeyServer{}
	s.Serve(body)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.handler.Load())(w, r)
	}))
	t.Cleanup(s.Server.Close)
	return s
}

// Asked returns the number of requests so far.
func (s *KeyServer) Asked() int64 { return s.asked.Load() }

// Handle sets the handler of all further requests.
func (s *KeyServer) Handle(handler http.HandlerFunc) { s.handler.Store(&handler) }

// Serve answers all further requests with the body.
func (s *KeyServer) Serve(body string) {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
}

// Fail answers all further requests with 502.
func (s *KeyServer) Fail() {
	s.Handle(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
}
