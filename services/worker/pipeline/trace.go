package pipeline

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// traceUnit starts the span of an attempt at a unit, at the arrival of its task. Its parent is the kick-off, so that a job
// is one trace; it links to the span that enqueued the task. No attribute identifies a patient or the group.
func (w *Worker) traceUnit(
	ctx context.Context, lease export.Lease, from string, arrived time.Time,
) (context.Context, trace.Span) {
	attributes := []attribute.KeyValue{
		attribute.String("sluice.job_id", string(lease.Job)),
		attribute.String("sluice.unit", string(lease.Unit.ID)),
		attribute.String("sluice.kind", string(lease.Unit.Kind)),
		attribute.Int64("sluice.fence", lease.Fence),
		attribute.Int("sluice.attempt", lease.Failures+1),
	}
	if lease.Unit.Type != "" {
		attributes = append(attributes, attribute.String("sluice.type", lease.Unit.Type))
	}
	return w.Tracing.Join(ctx, lease.Trace, string(lease.Unit.Kind), trace.WithTimestamp(arrived),
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attributes...), telemetry.LinkTo(from))
}

// endUnit ends the span of an attempt with its outcome.
func endUnit(span trace.Span, result export.Result, outcome string) {
	span.SetAttributes(attribute.String("sluice.outcome", outcome))
	if outcome == outcomeDone {
		var resources int64
		for _, file := range result.Files {
			resources += file.Count
		}
		span.SetAttributes(
			attribute.Int("sluice.files", len(result.Files)), attribute.Int64("sluice.resources", resources),
			attribute.Int64("sluice.withheld", result.Withheld),
		)
	}
	if outcome == outcomeFailed || outcome == outcomeRetried || outcome == outcomeUnrecorded {
		span.SetStatus(codes.Error, outcome)
	}
	span.End()
}
