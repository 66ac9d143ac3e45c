package httpapi

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Keys of the gin context with values for the log line.
const (
	requestIDKey = "request_id"
	jobIDKey     = "job_id"
	errorKey     = "err"
	stackKey     = "stack"
	traceIDKey   = "trace_id"
	ruleKey      = "rule"   // that the token of a 401 violates
	reasonKey    = "reason" // the same in words
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	kickoffs *prometheus.CounterVec

	unauthenticated *prometheus.CounterVec
}

func newMetrics(registry *prometheus.Registry) metrics {
	auto := promauto.With(registry)
	return metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_requests_total", Help: "Responses by status; cut: not finished.",
		}, []string{"route", "method", "code"}),
		seconds: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_api_request_seconds", Help: "Time from a request's header to the end of its response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600},
		}, []string{"route"}),
		kickoffs: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_kickoffs_total", Help: "Kick-offs by outcome.",
		}, []string{"outcome"}),
		unauthenticated: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_unauthenticated_total", Help: "Requests without a valid token (401) by the violated rule.",
		}, []string{"rule"}),
	}
}

// observe gives the request an id, sets the headers of every response, turns a panic into a server error, and writes one
// log line and the metrics. The line contains the route template, but no path, query or header: these may contain patient
// ids and tokens (pitfall 36).
func (s *service) observe(c *gin.Context) {
	begun := time.Now()
	// A client's own request id is ignored, because it would let clients write into the log.
	c.Set(requestIDKey, rand.Text())
	header := c.Writer.Header()
	header.Set("X-Request-Id", requestID(c))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")

	cut := s.contain(c)
	s.record(c, time.Since(begun), cut)
	if cut {
		panic(http.ErrAbortHandler)
	}
}

// contain runs the handlers and reports whether the connection must be cut because the response cannot be finished.
func (s *service) contain(c *gin.Context) (cut bool) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if err, ok := cause.(error); ok && err == http.ErrAbortHandler { //nolint:errorlint // the very value is meant
			cut = true
			return
		}
		c.Set(stackKey, string(debug.Stack()))
		err := fmt.Errorf("panic: %v", cause)
		if c.Writer.Written() {
			keepError(c, err)
			cut = true
			return
		}
		s.refuse(c, err)
	}()
	c.Next()
	return false
}

// record writes the log line and counts the response. A cut response counts as "cut" and not under its status.
func (s *service) record(c *gin.Context, took time.Duration, cut bool) {
	// Requests without a route share a label, so that scanners cannot fill the registry.
	route, method, code := cmp.Or(c.FullPath(), "none"), methodOf(c), c.Writer.Status()
	label := strconv.Itoa(code)
	if cut {
		label = "cut"
	}
	s.metrics.requests.WithLabelValues(route, method, label).Inc()
	s.metrics.seconds.WithLabelValues(route).Observe(took.Seconds())
	if s.isKickOff(c) {
		s.metrics.kickoffs.WithLabelValues(kickoffOutcome(code)).Inc()
	}

	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", route), slog.Int("status", code),
		slog.Int("bytes", max(c.Writer.Size(), 0)), slog.Float64("seconds", took.Seconds()),
		slog.String(requestIDKey, requestID(c)),
	}
	if cut {
		attrs = append(attrs, slog.Bool("cut", true))
	}
	for _, key := range []string{jobIDKey, traceIDKey, ruleKey, reasonKey, errorKey, stackKey} {
		if text := c.GetString(key); text != "" {
			attrs = append(attrs, slog.String(key, text))
		}
	}
	if c.GetString(errorKey) != "" {
		level = slog.LevelError
	}
	if level == slog.LevelInfo && (route == livePath || route == readyPath) {
		level = slog.LevelDebug // probes repeat every few seconds
	}
	s.Logger.LogAttrs(c.Request.Context(), level, "request", attrs...)
}

// kickoffOutcome returns the label of a kick-off's outcome.
func kickoffOutcome(code int) string {
	outcomes := map[int]string{
		http.StatusAccepted: "accepted", http.StatusUnauthorized: "unauthenticated", http.StatusForbidden: "forbidden",
		http.StatusNotFound: "not_found", http.StatusTooManyRequests: "throttled",
		http.StatusServiceUnavailable: "unavailable", statusClientGone: "client_gone",
	}
	switch outcome, known := outcomes[code]; {
	case known:
		return outcome
	case code < http.StatusInternalServerError:
		return "invalid"
	}
	return "error"
}

// methodOf returns the label of the method. HTTP allows any word, so unknown methods share one label.
func methodOf(c *gin.Context) string {
	switch method := c.Request.Method; method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions:
		return method
	}
	return "other"
}

func requestID(c *gin.Context) string { return c.GetString(requestIDKey) }

func noteJob(c *gin.Context, job export.JobID) { c.Set(jobIDKey, string(job)) }

// noteTrace stores the trace id of a W3C traceparent for the log line.
func noteTrace(c *gin.Context, parent string) { c.Set(traceIDKey, telemetry.TraceID(parent)) }

// keepError stores an error for the log line. Errors never contain queries, tokens or patient ids.
func keepError(c *gin.Context, err error) { c.Set(errorKey, err.Error()) }
