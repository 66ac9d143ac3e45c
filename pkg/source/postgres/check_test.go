package postgres_test

import (
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"

	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// TestCheckBeforeMigration: Check names the command, changes nothing, and succeeds after the migration. The sessions of
// a source are read-only.
func TestCheckBeforeMigration(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	src, err := postgres.Open(t.Context(), pgdb.Config{URL: url, Connections: 2})
	must(t, err)
	defer src.Close()
	for range 2 {
		if err := src.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "sluice admin migrate") {
			t.Errorf("without tables: %v, want the command", err)
		}
	}
	pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: url})
	must(t, err)
	defer pool.Close()
	if err := pgdb.Check(t.Context(), pool); err == nil || !strings.Contains(err.Error(), "version 0") {
		t.Errorf("with a read-write session: %v, want version 0", err)
	}
	var tables int
	err = pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").Scan(&tables)
	if err != nil || tables != 0 {
		t.Errorf("%d tables after the checks, %v", tables, err)
	}
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if err := src.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
