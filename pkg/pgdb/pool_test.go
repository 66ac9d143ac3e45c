package pgdb_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
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

// An operator repairs what the server refuses to the service as a whole; the work waits.
func TestARefusedServiceIsAnOutage(t *testing.T) {
	database := testenv.Postgres(t)
	for name, c := range map[string]struct {
		change func(*url.URL)
		code   string
	}{
		"password": {func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "wrong") }, "28P01"},
		"database": {func(u *url.URL) { u.Path = "/of_another_name" }, "3D000"},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := url.Parse(database)
			must(t, err)
			c.change(target)
			pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: target.String()})
			must(t, err)
			defer pool.Close()
			_, err = pool.Exec(t.Context(), "SELECT 1")
			if err = pgdb.Wrap("query", err); !errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), c.code) {
				t.Errorf("got %v, want export.ErrUnavailable with the code %s", err, c.code)
			}
		})
	}
}

// A client may try again, and a unit counts an attempt: the statement may take too long each time.
func TestAStatementTimeoutIsNoOutage(t *testing.T) {
	pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: testenv.Postgres(t)})
	must(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), "SET statement_timeout = 1; SELECT pg_sleep(10)")
	err = pgdb.Wrap("query", err)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
}
