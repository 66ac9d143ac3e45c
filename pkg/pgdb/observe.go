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

// These operations nest, so each stores its start under its own key.
type (
	queryBegan   struct{}
	batchBegan   struct{}
	connectBegan struct{}
	acquireBegan struct{}
)

func (o observed) tell(ctx context.Context, key any, operation string, err error) {
	began, known := ctx.Value(key).(time.Time)
	if !known || errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if known {
		o.observe.Observe(operation, began, err)
	}
}

// TraceQueryStart implements pgx.QueryTracer.
func (o observed) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, queryBegan{}, time.Now())
}

// TraceQueryEnd implements pgx.QueryTracer.
func (o observed) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	o.tell(ctx, queryBegan{}, "query", data.Err)
}

// TraceBatchStart implements pgx.BatchTracer.
func (o observed) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return context.WithValue(ctx, batchBegan{}, time.Now())
}

// TraceBatchQuery implements pgx.BatchTracer: the batch counts as a whole.
func (o observed) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements pgx.BatchTracer.
func (o observed) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	o.tell(ctx, batchBegan{}, "stream", data.Err)
}

// TraceConnectStart implements pgx.ConnectTracer.
func (o observed) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, connectBegan{}, time.Now())
}

// TraceConnectEnd implements pgx.ConnectTracer.
func (o observed) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	o.tell(ctx, connectBegan{}, "connect", data.Err)
}

// TraceAcquireStart implements pgxpool.AcquireTracer.
func (o observed) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return context.WithValue(ctx, acquireBegan{}, time.Now())
}

// TraceAcquireEnd implements pgxpool.AcquireTracer.
func (o observed) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	o.tell(ctx, acquireBegan{}, "acquire", data.Err)
}
