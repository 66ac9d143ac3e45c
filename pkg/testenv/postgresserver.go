package testenv

import (
	"context"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/testenv/servers"
)

// PostgresProcess is a PostgreSQL server of one test, which may crash it with Kill. Call its methods in the test's
// goroutine: they fail the test. Commits survive Kill; nothing survives the test.
type PostgresProcess struct {
	t      testing.TB
	server *servers.Postgres
}

// PostgresServer starts a server for this test.
func PostgresServer(t testing.TB) *PostgresProcess {
	t.Helper()
	server, err := servers.NewPostgres(t.Context(), reachable(t))
	return &PostgresProcess{t: t, server: owned(t, server, err)}
}

// URL returns the URL of the default database. It does not change after Kill and Start.
func (p *PostgresProcess) URL() string { return p.server.URL() }

// Kill crashes the server: an immediate shutdown drops every connection and leaves the recovery to Start. It returns when
// the server and its backends are gone.
func (p *PostgresProcess) Kill() {
	p.t.Helper()
	if err := p.server.Kill(); err != nil {
		p.t.Fatal(err)
	}
}

// Start starts the killed server again, on the same port and the same data, and returns when it accepts connections.
func (p *PostgresProcess) Start() {
	p.t.Helper()
	if err := p.server.Start(context.Background()); err != nil {
		p.t.Fatal(err)
	}
}
