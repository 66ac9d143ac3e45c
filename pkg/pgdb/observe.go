package pgdb

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// observed measures the time to acquire a connection from the pool ("acquire"), to connect ("connect"), to run a query
// until its last row was read ("query"), and to run a batch ("stream"), whose rows may be exported for minutes. It does
// not record statements or arguments.
type observed struct{ observe telemetry.Observer }

var (
	_ pgx.QueryTracer       = observed{}
	_ pgx.BatchTracer       = observed{}
	_ pgx.ConnectTracer     = observed{}
	_ pgxpool.AcquireTracer = observed{}
)

// operation is the name of an operation and the key of its start in the context.
type operation string

func (o observed) begin(ctx context.Context, op operation) context.Context {
	return context.WithValue(ctx, op, time.Now())
}

func (o observed) end(ctx context.Context, op operation, err error) {
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if began, known := ctx.Value(op).(time.Time); known {
		o.observe.Observe(string(op), began, err)
	}
}

// TraceQueryStart implements pgx.QueryTracer.
func (o observed) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return o.begin(ctx, "query")
}

// TraceQueryEnd implements pgx.QueryTracer.
func (o observed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	o.end(ctx, "query", data.Err)
}

// TraceBatchStart implements pgx.BatchTracer.
func (o observed) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return o.begin(ctx, "stream")
}

// TraceBatchQuery implements pgx.BatchTracer: the batch counts as a whole.
func (o observed) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements pgx.BatchTracer.
func (o observed) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	o.end(ctx, "stream", data.Err)
}

// TraceConnectStart implements pgx.ConnectTracer.
func (o observed) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return o.begin(ctx, "connect")
}

// TraceConnectEnd implements pgx.ConnectTracer.
func (o observed) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	o.end(ctx, "connect", data.Err)
}

// TraceAcquireStart implements pgxpool.AcquireTracer.
func (o observed) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return o.begin(ctx, "acquire")
}

// TraceAcquireEnd implements pgxpool.AcquireTracer.
func (o observed) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	o.end(ctx, "acquire", data.Err)
}
