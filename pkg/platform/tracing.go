package platform

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
	// exportTimeout bounds one try to hand spans over.
	exportTimeout = 10 * time.Second
	// exportTries bounds the time that one batch is tried again in; then it is dropped.
	exportTries = 20 * time.Second
	// exportAgain is the time between two tries.
	exportAgain = time.Second
	// flushTimeout bounds the wait for the last spans when a process stops.
	flushTimeout = 3 * time.Second
	// spansKept bounds the spans that wait to be handed over, some hundred bytes each; further ones are dropped.
	spansKept = 2048
)

const spansLost = "spans are lost: the collector does not take them"

// tracerName names this code among others whose spans may be in the same trace.
const tracerName = "github.com/sluice-fhir/sluice"

// TracingConfig says where spans go.
type TracingConfig struct {
	Endpoint string            // URL that OTLP is posted to, as protobuf over HTTP; "" traces nothing
	Headers  map[string]string // sent along, such as credentials
	Ratio    float64           // share of the traces that is kept, 0 to 1; decided once, where a trace begins
	Client   *http.Client      // nil: http.DefaultClient; its timeout is not used
	Service  string            // whose spans they are
	Logger   *slog.Logger
	Registry prometheus.Registerer
}

// Tracing begins and continues traces. What becomes of the spans never shows in what they are about: handing them over
// happens beside, is given up after a while, and is never waited for but for a moment at the end of the process.
//
// The zero value traces nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider // nil: nothing is traced
	log      *slog.Logger
}

// OpenTracing returns a Tracing. No connection is made yet, and none has to be: a collector that is down is counted in
// sluice_trace_export_failures_total and named in the log when it goes and when it comes back.
func OpenTracing(ctx context.Context, cfg TracingConfig) (*Tracing, error) {
	if cfg.Endpoint == "" {
		return &Tracing{}, nil
	}
	// A redirect would take the headers, which are secret, to somebody else.
	client := http.Client{
		Timeout: exportTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if cfg.Client != nil {
		client.Transport = cfg.Client.Transport
	}
	exporter, err := otlptrace.New(ctx, &otlpClient{
		url: cfg.Endpoint, headers: cfg.Headers, client: &client, again: exportAgain, most: exportTries,
	})
	if err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_trace_export_failures_total", Help: "Batches of spans that the collector did not take. They are lost.",
	})
	if err := cfg.Registry.Register(failures); err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("open tracing: %w", err)
	}
	// The library has one handler for the whole process, and its own writes plain lines to stderr.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		cfg.Logger.Warn("tracing has trouble", "err", err)
	}))
	return &Tracing{log: cfg.Logger, provider: sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Ratio))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "sluice-"+cfg.Service), attribute.String("host.name", host),
		)),
		sdktrace.WithBatcher(&patient{SpanExporter: exporter, log: cfg.Logger, failures: failures},
			sdktrace.WithMaxQueueSize(spansKept), sdktrace.WithMaxExportBatchSize(spansKept/4),
			sdktrace.WithBatchTimeout(time.Second), sdktrace.WithExportTimeout(exportTries+exportTimeout),
		),
	)}, nil
}

// Close hands the last spans over, if that is done within a moment. The context may have ended: it mostly has when a
// process stops.
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

// Begin begins a trace with its first span, which has to be ended. Whoever calls from outside has no say in it: the
// context's own trace, if it has one, is left.
func (t *Tracing) Begin(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	return t.tracer().Start(ctx, name, append(options, trace.WithNewRoot())...)
}

// Join continues the trace of a W3C traceparent with a span below it, which has to be ended. A traceparent that is none
// begins nothing. Whether the trace is kept was decided where it began.
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

// Step is a span below the context's one; without one it is nothing.
func Step(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(tracerName).Start(ctx, name, options...)
}

// EndStep ends a span, as failed when there is an error. The error's text stays in the log.
func EndStep(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// LinkTo is a link to the span of a W3C traceparent; one that is none gives no option that does anything.
func LinkTo(parent string) trace.SpanStartOption {
	remote := spanContext(parent)
	if !remote.IsValid() {
		return trace.WithLinks()
	}
	return trace.WithLinks(trace.Link{SpanContext: remote})
}

const traceParentKey = "traceparent"

// TraceParent is the W3C traceparent of the context's span, 55 characters, or "" when it has none.
func TraceParent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceParentKey]
}

// TraceID is the trace of a W3C traceparent, 32 hex digits, or "" when it is none.
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

// patient is an exporter that counts what it cannot hand over, and says so once for each outage.
type patient struct {
	sdktrace.SpanExporter
	log      *slog.Logger
	failures prometheus.Counter

	mu   sync.Mutex
	down bool
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: nobody could do more about it.
func (p *patient) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := p.SpanExporter.ExportSpans(ctx, spans)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil:
		p.failures.Inc()
		if !p.down {
			p.log.Warn(spansLost, "err", err)
		}
	case p.down:
		p.log.Info("the collector takes spans again")
	}
	p.down = err != nil
	return nil
}
