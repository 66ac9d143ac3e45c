package platform_test

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

	"github.com/sluice-fhir/sluice/pkg/platform"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func tracing(t *testing.T, cfg platform.TracingConfig) *platform.Tracing {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	cfg.Service = "test"
	opened, err := platform.OpenTracing(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// A trace that one process begins is continued by another one, below what it began with.
func TestATraceIsContinuedElsewhere(t *testing.T) {
	collector := testenv.NewCollector(t)
	cfg := platform.TracingConfig{
		Endpoint: collector.URL + "/v1/traces", Ratio: 1, Headers: map[string]string{"Authorization": "Bearer x"},
	}
	begins, joins := tracing(t, cfg), tracing(t, cfg)

	// What a caller brings along has no say in the trace.
	foreign, outer := begins.Begin(t.Context(), "foreign")
	ctx, root := begins.Begin(foreign, "root")
	parent := platform.TraceParent(ctx)
	linked, link := begins.Begin(t.Context(), "linked")
	ctx, unit := joins.Join(t.Context(), parent, "unit", platform.LinkTo(platform.TraceParent(linked)))
	_, step := platform.Step(ctx, "step")
	platform.EndStep(step, errors.New("it broke for somebody"))
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
		t.Errorf("the spans do not hang together: %v", found)
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
	if want := platform.TraceID(parent); len(want) != 32 {
		t.Errorf("trace id %q", want)
	}
}

// Where a trace begins it is decided whether it is kept, and nobody else decides anew.
func TestSamplingIsDecidedWhereATraceBegins(t *testing.T) {
	collector := testenv.NewCollector(t)
	never := tracing(t, platform.TracingConfig{Endpoint: collector.URL + "/v1/traces", Ratio: 0})
	always := tracing(t, platform.TracingConfig{Endpoint: collector.URL + "/v1/traces", Ratio: 1})
	dropped, root := never.Begin(t.Context(), "dropped")
	_, below := always.Join(t.Context(), platform.TraceParent(dropped), "below dropped")
	kept, keptRoot := always.Begin(t.Context(), "kept")
	_, belowKept := never.Join(t.Context(), platform.TraceParent(kept), "below kept")
	_, orphan := always.Join(t.Context(), "", "of no trace")
	_, broken := always.Join(t.Context(), "00-zz-zz-01", "of no trace either")
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

// Without a collector nothing is traced, and nothing has to be asked for that.
func TestNoTracing(t *testing.T) {
	for name, none := range map[string]*platform.Tracing{"nil": nil, "closed": tracing(t, platform.TracingConfig{})} {
		ctx, span := none.Begin(t.Context(), "root")
		ctx, step := platform.Step(ctx, "step")
		if parent := platform.TraceParent(ctx); parent != "" || platform.TraceID("") != "" {
			t.Errorf("%s: traceparent %q", name, parent)
		}
		platform.EndStep(step, nil)
		span.End()
		none.Close(t.Context())
	}
}

// A collector that is down costs the spans, a count and one line, and nobody waits for it.
func TestACollectorThatIsDown(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden) // one that is not tried again
	}))
	defer refuses.Close()
	var said bytes.Buffer
	registry := prometheus.NewRegistry()
	down := tracing(t, platform.TracingConfig{
		Endpoint: refuses.URL + "/v1/traces", Ratio: 1, Registry: registry, Logger: slog.New(slog.NewJSONHandler(&said, nil)),
	})
	for range 3 * 2048 { // more than is kept for it
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
	if lines := strings.Count(said.String(), "spans are lost"); lines != 1 {
		t.Errorf("%d lines: %s", lines, said.String())
	}
}

// TestCloseDoesNotWaitForACollectorThatHangs closes while the collector keeps the request.
func TestCloseDoesNotWaitForACollectorThatHangs(t *testing.T) {
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer hangs.Close()
	defer close(release)
	opened := tracing(t, platform.TracingConfig{Endpoint: hangs.URL + "/v1/traces", Ratio: 1})
	_, span := opened.Begin(t.Context(), "kept from its collector")
	span.End()
	closed := make(chan struct{})
	go func() { opened.Close(t.Context()); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second): // a guard: the collector would hold it for ever
		t.Error("close waits")
	}
}

// A collector that is busy gets the spans a little later.
func TestABusyCollectorIsAskedAgain(t *testing.T) {
	collector := testenv.NewCollector(t)
	asked := 0
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		collector.Config.Handler.ServeHTTP(w, r)
	}))
	defer busy.Close()
	opened := tracing(t, platform.TracingConfig{Endpoint: busy.URL + "/v1/traces", Ratio: 1})
	_, span := opened.Begin(t.Context(), "in time")
	span.End()
	opened.Close(t.Context())
	if spans := collector.Spans(); len(spans) != 1 || asked != 2 {
		t.Errorf("%d spans after %d requests", len(spans), asked)
	}
}
