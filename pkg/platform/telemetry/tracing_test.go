package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func tracing(t *testing.T, cfg telemetry.TracingConfig) *telemetry.Tracing {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	cfg.Service = "test"
	opened, err := telemetry.OpenTracing(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

func TestJoinContinuesATrace(t *testing.T) {
	collector := testenv.NewCollector(t)
	cfg := telemetry.TracingConfig{
		Endpoint: collector.URL + "/v1/traces", Ratio: 1, Headers: map[string]string{"Authorization": "Bearer x"},
	}
	begins, joins := tracing(t, cfg), tracing(t, cfg)

	// Begin ignores the caller's trace.
	foreign, outer := begins.Begin(t.Context(), "foreign")
	ctx, root := begins.Begin(foreign, "root")
	parent := telemetry.TraceParent(ctx)
	linked, link := begins.Begin(t.Context(), "linked")
	ctx, unit := joins.Join(t.Context(), parent, "unit", telemetry.LinkTo(telemetry.TraceParent(linked)))
	_, step := telemetry.StartSpan(ctx, "step")
	telemetry.EndSpan(step, errors.New("step failed"))
	for _, span := range []trace.Span{unit, root, outer, link} {
		span.End()
	}
	begins.Close(t.Context())
	joins.Close(t.Context())

	found := map[string]testenv.Span{}
	for _, span := range collector.Spans() {
		found[span.GetName()] = span
	}
	id := func(b []byte) string { return string(b) }
	if len(found) != 5 || id(found["root"].TraceId) == id(found["foreign"].TraceId) || len(found["root"].ParentSpanId) != 0 {
		t.Fatalf("spans: %v", found)
	}
	if id(found["unit"].TraceId) != id(found["root"].TraceId) || id(found["unit"].ParentSpanId) != id(found["root"].SpanId) ||
		id(found["step"].ParentSpanId) != id(found["unit"].SpanId) {
		t.Errorf("wrong parents or traces: %v", found)
	}
	if links := found["unit"].GetLinks(); len(links) != 1 || id(links[0].SpanId) != id(found["linked"].SpanId) {
		t.Errorf("links: %v", links)
	}
	if status := found["step"].GetStatus(); status.GetCode().String() != "STATUS_CODE_ERROR" || status.GetMessage() != "" {
		t.Errorf("the failed step: %v", status)
	}
	if found["root"].Service != "sluice-test" || collector.Header().Get("Authorization") != "Bearer x" {
		t.Errorf("service %q, header %v", found["root"].Service, collector.Header())
	}
	if want := telemetry.TraceID(parent); len(want) != 32 {
		t.Errorf("trace id %q", want)
	}
}

// The sampling decision is made where a trace begins.
func TestSampling(t *testing.T) {
	collector := testenv.NewCollector(t)
	never := tracing(t, telemetry.TracingConfig{Endpoint: collector.URL + "/v1/traces", Ratio: 0})
	always := tracing(t, telemetry.TracingConfig{Endpoint: collector.URL + "/v1/traces", Ratio: 1})
	dropped, root := never.Begin(t.Context(), "dropped")
	_, below := always.Join(t.Context(), telemetry.TraceParent(dropped), "below dropped")
	kept, keptRoot := always.Begin(t.Context(), "kept")
	_, belowKept := never.Join(t.Context(), telemetry.TraceParent(kept), "below kept")
	_, orphan := always.Join(t.Context(), "", "without a traceparent")
	_, broken := always.Join(t.Context(), "00-zz-zz-01", "invalid traceparent")
	for _, span := range []trace.Span{root, below, keptRoot, belowKept, orphan, broken} {
		span.End()
	}
	never.Close(t.Context())
	always.Close(t.Context())
	var names []string
	for _, span := range collector.Spans() {
		names = append(names, span.GetName())
	}
	if len(names) != 2 || !strings.Contains(strings.Join(names, " "), "below kept") {
		t.Errorf("kept: %v", names)
	}
}

func TestNoTracing(t *testing.T) {
	for name, none := range map[string]*telemetry.Tracing{"nil": nil, "closed": tracing(t, telemetry.TracingConfig{})} {
		ctx, span := none.Begin(t.Context(), "root")
		ctx, step := telemetry.StartSpan(ctx, "step")
		if parent := telemetry.TraceParent(ctx); parent != "" || telemetry.TraceID("") != "" {
			t.Errorf("%s: traceparent %q", name, parent)
		}
		telemetry.EndSpan(step, nil)
		span.End()
		none.Close(t.Context())
	}
}

// During an outage of the collector spans are dropped. The outage is counted, and logged once.
func TestCollectorDown(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden) // not retried
	}))
	defer refuses.Close()
	var logged bytes.Buffer
	registry := prometheus.NewRegistry()
	down := tracing(t, telemetry.TracingConfig{
		Endpoint: refuses.URL + "/v1/traces", Ratio: 1, Registry: registry, Logger: slog.New(slog.NewJSONHandler(&logged, nil)),
	})
	for range 3 * 2048 { // more than the queue holds
		_, span := down.Begin(context.Background(), "lost")
		span.End()
	}
	down.Close(t.Context())
	count, err := testutil.GatherAndCount(registry, "sluice_trace_export_failures_total")
	if err != nil || count != 1 {
		t.Fatalf("%d metrics, %v", count, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if lost := families[0].GetMetric()[0].GetCounter().GetValue(); lost < 1 {
		t.Errorf("%v failures are counted", lost)
	}
	if lines := strings.Count(logged.String(), "spans are lost"); lines != 1 {
		t.Errorf("%d lines: %s", lines, logged.String())
	}
}

func TestCloseDoesNotWaitForAHangingCollector(t *testing.T) {
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer hangs.Close()
	defer close(release)
	opened := tracing(t, telemetry.TracingConfig{Endpoint: hangs.URL + "/v1/traces", Ratio: 1})
	_, span := opened.Begin(t.Context(), "unsent")
	span.End()
	closed := make(chan struct{})
	go func() { opened.Close(t.Context()); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second): // the collector would hang forever
		t.Error("close waits")
	}
}

func TestRetryWhileTheCollectorIsBusy(t *testing.T) {
	collector := testenv.NewCollector(t)
	requests := 0
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests++; requests == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		collector.Config.Handler.ServeHTTP(w, r)
	}))
	defer busy.Close()
	opened := tracing(t, telemetry.TracingConfig{Endpoint: busy.URL + "/v1/traces", Ratio: 1})
	_, span := opened.Begin(t.Context(), "retried")
	span.End()
	opened.Close(t.Context())
	if spans := collector.Spans(); len(spans) != 1 || requests != 2 {
		t.Errorf("%d spans after %d requests", len(spans), requests)
	}
}
