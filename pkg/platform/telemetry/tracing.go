// Package telemetry provides the process's logger, metrics and traces.
package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const (
	exportTimeout = 10 * time.Second // of one attempt to send spans
	retryLimit    = 20 * time.Second // a batch is dropped after this
	retryPause    = time.Second
	flushTimeout  = 3 * time.Second // when a process stops
	queueSize     = 2048            // spans, some hundred bytes each; further ones are dropped

	spansLost = "spans are lost: the collector does not accept them"

	// tracerName names this code in traces that include spans of other code.
	tracerName = "github.com/sluice-fhir/sluice"
)

// TracingConfig configures tracing.
type TracingConfig struct {
	Endpoint string            // URL for OTLP, protobuf over HTTP; "" disables tracing
	Headers  map[string]string // added to requests, such as credentials
	Ratio    float64           // share of traces that are sampled, 0 to 1; decided where a trace begins
	Client   *http.Client      // only its Transport is used; nil: http.DefaultTransport
	Service  string
	Logger   *slog.Logger
	Registry prometheus.Registerer
}

// Tracing begins and continues traces. Spans are sent in the background with bounded retries, so a slow or unavailable
// collector never delays or fails the traced operation.
//
// The zero value and nil trace nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider // nil: tracing is disabled
	log      *slog.Logger
}

// OpenTracing returns a Tracing. It does not connect. Batches that the collector does not accept are counted in
// sluice_trace_export_failures_total; the log has one line when the collector becomes unavailable and one when it is
// back.
func OpenTracing(ctx context.Context, cfg TracingConfig) (*Tracing, error) {
	if cfg.Endpoint == "" {
		return &Tracing{}, nil
	}
	// A redirect would send the headers, which are secret, to another server.
	client := http.Client{
		Timeout: exportTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if cfg.Client != nil {
		client.Transport = cfg.Client.Transport
	}
	exporter, err := otlptrace.New(ctx, &otlpClient{
		url: cfg.Endpoint, headers: cfg.Headers, client: &client, retryPause: retryPause, retryLimit: retryLimit,
	})
	if err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_trace_export_failures_total", Help: "Batches of spans that the collector did not accept. They are lost.",
	})
	if err := cfg.Registry.Register(failures); err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	// The library has one handler for the process; its default writes plain lines to stderr.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		cfg.Logger.Warn("tracing failed", "err", err)
	}))
	return &Tracing{log: cfg.Logger, provider: sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Ratio))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "sluice-"+cfg.Service), attribute.String("host.name", host),
		)),
		sdktrace.WithBatcher(&lossyExporter{SpanExporter: exporter, log: cfg.Logger, failures: failures},
			sdktrace.WithMaxQueueSize(queueSize), sdktrace.WithMaxExportBatchSize(queueSize/4),
			sdktrace.WithBatchTimeout(time.Second), sdktrace.WithExportTimeout(retryLimit+exportTimeout),
		),
	)}, nil
}

// Close sends the remaining spans within flushTimeout. ctx may have ended already.
func (t *Tracing) Close(ctx context.Context) {
	if t == nil || t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn(spansLost, "err", err)
	}
}

// Begin starts a trace and its first span, which the caller ends. It ignores a trace in ctx: clients do not
// control sampling.
func (t *Tracing) Begin(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	return t.tracer().Start(ctx, name, append(options, trace.WithNewRoot())...)
}

// Join continues the trace of a W3C traceparent with a child span, which the caller ends. An invalid traceparent yields
// a no-op span. The sampling decision was made where the trace began.
func (t *Tracing) Join(
	ctx context.Context, parent, name string, options ...trace.SpanStartOption,
) (context.Context, trace.Span) {
	remote := spanContext(parent)
	if !remote.IsValid() {
		return noop.NewTracerProvider().Tracer("").Start(ctx, name)
	}
	return t.tracer().Start(trace.ContextWithRemoteSpanContext(ctx, remote), name, options...)
}

func (t *Tracing) tracer() trace.Tracer {
	if t == nil || t.provider == nil {
		return noop.NewTracerProvider().Tracer("")
	}
	return t.provider.Tracer(tracerName)
}

// StartSpan starts a child of the span in ctx. Without one it does nothing.
func StartSpan(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(tracerName).Start(ctx, name, options...)
}

// EndSpan ends a span, with status Error after an error. The error's text is not added to the trace.
func EndSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// LinkTo links to the span of a W3C traceparent. An invalid traceparent yields no link.
func LinkTo(parent string) trace.SpanStartOption {
	remote := spanContext(parent)
	if !remote.IsValid() {
		return trace.WithLinks()
	}
	return trace.WithLinks(trace.Link{SpanContext: remote})
}

const traceParentKey = "traceparent"

// TraceParent returns the W3C traceparent of the span in ctx, 55 characters, or "" without a span.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceParentKey]
}

// TraceID returns the trace id of a W3C traceparent, 32 hex digits, or "" when it is invalid.
func TraceID(parent string) string {
	if remote := spanContext(parent); remote.IsValid() {
		return remote.TraceID().String()
	}
	return ""
}

func spanContext(parent string) trace.SpanContext {
	carrier := propagation.MapCarrier{traceParentKey: parent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// lossyExporter counts batches that cannot be sent and logs once for each outage.
type lossyExporter struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	failures prometheus.Counter

	mu   sync.Mutex
	down bool
}

// ExportSpans implements sdktrace.SpanExporter. It handles errors itself and returns none.
func (e *lossyExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil:
		e.failures.Inc()
		if !e.down {
			e.log.Warn(spansLost, "err", err)
		}
	case e.down:
		e.log.Info("the collector accepts spans again")
	}
	e.down = err != nil
	return nil
}
