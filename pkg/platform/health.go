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

// Health answers /livez (the process runs), /readyz (each dependency by name; 503 when one is down), /metrics, and the
// profiles below /debug/pprof/. It is for a listener that only operators reach.
func Health(checks Checks, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, report := checks.report(r.Context())
		writeJSON(w, status, report)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// report runs all checks at once. What is wrong with a dependency is not told to whoever asks: only which one it is.
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
