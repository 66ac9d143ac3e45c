package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"sync"
	"time"
)

// front is the load balancer: it gives each request to the next replica of the API that is ready.
type front struct {
	server   *httptest.Server
	replicas []string // their addresses, through the links

	mu    sync.Mutex
	ready []bool
	next  int
}

func newFront() *front {
	f := &front{}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", f.pick()
			r.Out.Host = r.In.Host
		},
		FlushInterval: -1,
		Transport: &http.Transport{
			DisableCompression: true, MaxIdleConnsPerHost: 100, ResponseHeaderTimeout: 30 * time.Second,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	f.server = httptest.NewServer(proxy)
	return f
}

// base is the public URL of the FHIR base.
func (f *front) base() string { return f.server.URL + "/fhir" }

// pick returns the next ready replica, or any if none is.
func (f *front) pick() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range f.replicas {
		f.next = (f.next + 1) % len(f.replicas)
		if f.ready[f.next] {
			break
		}
	}
	return f.replicas[f.next]
}

// watch asks the replicas whether they are ready, until the context ends.
func (f *front) watch(ctx context.Context) {
	client := &http.Client{Timeout: 2 * time.Second}
	for {
		for i, replica := range f.replicas {
			ready := false
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+replica+"/readyz", nil)
			if err == nil {
				if resp, err := client.Do(req); err == nil {
					ready = resp.StatusCode == http.StatusOK
					_ = resp.Body.Close()
				}
			}
			f.mu.Lock()
			f.ready[i] = ready
			f.mu.Unlock()
		}
		if pause(ctx, 250*time.Millisecond) != nil {
			return
		}
	}
}

// pause waits, and returns the context's error if it ends meanwhile.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
