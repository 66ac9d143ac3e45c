package httpapi

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Keys of what a request leaves for its log line.
const (
	requestIDKey = "request_id"
	jobIDKey     = "job_id"
	errorKey     = "err"
	stackKey     = "stack"
	traceIDKey   = "trace_id"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	kickoffs *prometheus.CounterVec
}

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_requests_total", Help: "Answered requests.",
		}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_api_request_seconds", Help: "Time from a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600},
		}, []string{"route"}),
		kickoffs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_kickoffs_total", Help: "Kick-offs by how they ended.",
		}, []string{"outcome"}),
	}
	for _, collector := range []prometheus.Collector{m.requests, m.seconds, m.kickoffs} {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("registering the API's metrics: %w", err)
		}
	}
	return m, nil
}

// observe gives the request an id, sets the headers that every answer has, turns a panic into a plain server error,
// and leaves one log line and the metrics. The line holds the route template and never the path, the query or a
// header: those carry patient lists and tokens (pitfall 36).
func (s *service) observe(c *gin.Context) {
	begun := time.Now()
	// A client's own id is not taken over: it would let anybody write into the log.
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

// contain runs the handlers and reports whether the connection has to be cut because the answer cannot be finished.
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

// record writes the log line and counts. A cut answer counts as "cut" and not under the status that it began with.
func (s *service) record(c *gin.Context, took time.Duration, cut bool) {
	route, method, code := routeOf(c), methodOf(c), c.Writer.Status()
	label := strconv.Itoa(code)
	if cut {
		label = "cut"
	}
	s.metrics.requests.WithLabelValues(route, method, label).Inc()
	s.metrics.seconds.WithLabelValues(route).Observe(took.Seconds())
	if method == http.MethodGet && route == s.kickoffTemplate() {
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
	if job := c.GetString(jobIDKey); job != "" {
		attrs = append(attrs, slog.String(jobIDKey, job))
	}
	if trace := c.GetString(traceIDKey); trace != "" {
		attrs = append(attrs, slog.String(traceIDKey, trace))
	}
	if err := c.GetString(errorKey); err != "" {
		level = slog.LevelError
		attrs = append(attrs, slog.String(errorKey, err))
	}
	if stack := c.GetString(stackKey); stack != "" {
		attrs = append(attrs, slog.String(stackKey, stack))
	}
	if level == slog.LevelInfo && slices.Contains([]string{livePath, readyPath}, route) {
		level = slog.LevelDebug // probes come every few seconds, for ever
	}
	s.log.LogAttrs(c.Request.Context(), level, "request", attrs...)
}

func (s *service) kickoffTemplate() string {
	return joinPath(s.base.Path, kickoffRoute)
}

// kickoffOutcome names how a kick-off ended.
func kickoffOutcome(code int) string {
	switch code {
	case http.StatusAccepted:
		return "accepted"
	case http.StatusUnauthorized:
		return "unauthenticated"
	case http.StatusForbidden:
		return "forbidden"
	case http.StatusNotFound:
		return "not_found"
	case http.StatusTooManyRequests:
		return "throttled"
	case http.StatusServiceUnavailable:
		return "unavailable"
	case statusClientGone:
		return "client_gone"
	}
	if code < http.StatusInternalServerError {
		return "invalid"
	}
	return "error"
}

// routeOf names the route by its template; requests that met none share one name, so that scanners cannot fill the
// registry.
func routeOf(c *gin.Context) string {
	if route := c.FullPath(); route != "" {
		return route
	}
	return "none"
}

// methodOf names the method; HTTP allows any word, so unusual ones share one name.
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

// noteTrace leaves the trace of a W3C traceparent for the request's log line.
func noteTrace(c *gin.Context, parent string) { c.Set(traceIDKey, telemetry.TraceID(parent)) }

// keepError leaves an error for the request's log line. Errors never hold queries, tokens or patient ids.
func keepError(c *gin.Context, err error) { c.Set(errorKey, err.Error()) }
