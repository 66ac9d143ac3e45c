// Package health serves a process's liveness, readiness, metrics and profiles, and checks the health of other servers.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	checkTimeout = 3 * time.Second // a dependency that is slower is not ready
	reportAge    = time.Second     // how long a readiness report is reused, to limit the load of probes on dependencies
)

// Checks are the dependencies of a process by name. Each function fails when the dependency cannot be used, and returns
// soon after its context ends.
type Checks map[string]func(context.Context) error

// Probes serves only /livez (the process runs) and /readyz (each dependency by name; 503 when one is down). It is safe on a
// public listener: reports are reused for a second by the given clock, concurrent requests share one report, and reports
// contain no error texts.
func Probes(checks Checks, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	ready := &readiness{checks: checks, now: now, lock: make(chan struct{}, 1)}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, report := ready.report(r.Context())
		writeJSON(w, status, report)
	})
	return mux
}

// Handler serves the Probes, /metrics, and profiles below /debug/pprof/. It is for a listener that only operators can
// reach.
func Handler(checks Checks, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	probes := Probes(checks, time.Now)
	mux.Handle("/livez", probes)
	mux.Handle("/readyz", probes)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

type readiness struct {
	checks Checks
	now    func() time.Time

	lock   chan struct{} // guards the fields below; unlike a mutex it can be waited for with a context
	made   time.Time
	status int // 0: no report yet
	last   map[string]string
}

// report returns a report younger than reportAge. The checks do not run under the caller's context: a caller that
// disconnects must not make the dependencies look down to other callers.
func (r *readiness) report(ctx context.Context) (int, map[string]string) {
	select {
	case r.lock <- struct{}{}:
	case <-ctx.Done():
		return http.StatusServiceUnavailable, nil // the caller has disconnected
	}
	defer func() { <-r.lock }()
	if age := r.now().Sub(r.made); r.status == 0 || age < 0 || age >= reportAge {
		r.status, r.last = r.checks.report(context.WithoutCancel(ctx))
		r.made = r.now()
	}
	return r.status, r.last
}

// report runs all checks at once. The returned map is not modified later.
func (c Checks) report(ctx context.Context) (int, map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var mutex sync.Mutex
	var group sync.WaitGroup
	status, report := http.StatusOK, map[string]string{}
	for name, check := range c {
		group.Go(func() {
			err := errors.Join(check(ctx), ctx.Err()) // a late success counts as a failure
			mutex.Lock()
			defer mutex.Unlock()
			report[name] = "ok"
			if err != nil {
				report[name] = "down"
				status = http.StatusServiceUnavailable
			}
		})
	}
	group.Wait()
	return status, report
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only if the client has disconnected
}

// Get requests an http or https URL and returns nil for status 200. It does not follow redirects, which lead to another
// server. Errors contain only the URL's host.
func Get(ctx context.Context, transport http.RoundTripper, at string) error {
	target, err := url.Parse(at)
	request, requestErr := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if errors.Join(err, requestErr) != nil || target.Host == "" || target.Scheme != "http" && target.Scheme != "https" {
		return errors.New("not a URL such as http://host:port/readyz")
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", target.Host, err)
	}
	if err := response.Body.Close(); err != nil {
		return fmt.Errorf("%s: close the response: %w", target.Host, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", target.Host, response.StatusCode)
	}
	return nil
}
