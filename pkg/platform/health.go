package platform

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTimeout bounds each readiness check: a dependency that is slower than this is not ready.
const checkTimeout = 3 * time.Second

// Checks are the dependencies of a process by name, each with a function that fails when it cannot be used and
// returns soon after its context has ended.
type Checks map[string]func(context.Context) error

// NewRegistry returns a metrics registry with the process's own figures.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// reportAge is how long a readiness report is given again before the dependencies are asked anew, so that whoever asks,
// and how often, costs them one question a second.
const reportAge = time.Second

// Probes answers /livez (the process runs) and /readyz (each dependency by name; 503 when one is down), and nothing
// else. It may stand on a public listener: a report is kept for a second by the clock given, callers at the same time
// share one look at the dependencies, and what is wrong with them is not told.
func Probes(checks Checks, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	probes(mux, checks, now)
	return mux
}

func probes(mux *http.ServeMux, checks Checks, now func() time.Time) {
	ready := &readiness{checks: checks, now: now, turn: make(chan struct{}, 1)}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, report := ready.report(r.Context())
		writeJSON(w, status, report)
	})
}

// Health answers what Probes does, /metrics, and the profiles below /debug/pprof/. It is for a listener that only
// operators reach.
func Health(checks Checks, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	probes(mux, checks, time.Now)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// readiness is the last report and whose turn it is to make the next.
type readiness struct {
	checks Checks
	now    func() time.Time

	turn   chan struct{} // holds one token while somebody reads or makes the report
	made   time.Time
	status int // 0: there is no report yet
	last   map[string]string
}

// report returns a report that is younger than reportAge. It is made with a context of its own: a caller that hangs
// up must not make the dependencies look down to the others.
func (r *readiness) report(ctx context.Context) (int, map[string]string) {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return http.StatusServiceUnavailable, nil // there is nobody to answer
	}
	defer func() { <-r.turn }()
	if age := r.now().Sub(r.made); r.status == 0 || age < 0 || age >= reportAge {
		r.status, r.last = r.checks.report(context.WithoutCancel(ctx))
		r.made = r.now()
	}
	return r.status, r.last
}

// report runs all checks at once. What is wrong with a dependency is not told: only which one it is. Nobody changes a
// report once it is returned.
func (c Checks) report(ctx context.Context) (int, map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var mutex sync.Mutex
	var group sync.WaitGroup
	status, report := http.StatusOK, map[string]string{}
	for name, check := range c {
		group.Go(func() {
			err := errors.Join(check(ctx), ctx.Err()) // too late is down, whatever the check says in the end
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
	_ = json.NewEncoder(w).Encode(body) // the client has gone: there is nobody to tell
}
