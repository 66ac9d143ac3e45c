package pgdb_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// TestConnectTimeoutIsAnOutage: a host that is down does not refuse connections (pitfalls 20, 21).
func TestConnectTimeoutIsAnOutage(t *testing.T) {
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	pool, err := pgdb.Open(t.Context(), pgdb.Config{
		URL: "postgres://user:secret@" + silent.Addr().String() + "/store?sslmode=disable&connect_timeout=1",
	})
	must(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), "SELECT 1")
	err = pgdb.Wrap("query", err)
	if !errors.Is(err, export.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want export.ErrUnavailable and not context.DeadlineExceeded", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pool.Exec(ctx, "SELECT 1")
	if err = pgdb.Wrap("query", err); !errors.Is(err, context.Canceled) || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
