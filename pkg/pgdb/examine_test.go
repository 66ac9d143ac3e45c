package pgdb_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestExamine(t *testing.T) {
	owner := testenv.Postgres(t)
	ctx := t.Context()
	if err := pgdb.CheckSchema(ctx, pgdb.Config{URL: owner}); err == nil || !strings.Contains(err.Error(), "sluice admin migrate") {
		t.Errorf("before the migration: %v", err)
	}
	if _, err := pgdb.Migrate(ctx, owner); err != nil {
		t.Fatal(err)
	}
	if err := pgdb.CheckSchema(ctx, pgdb.Config{URL: owner}); err != nil {
		t.Error(err)
	}
	facts, err := pgdb.Examine(ctx, pgdb.Config{URL: owner})
	if err != nil || facts.Encoding != "UTF8" || facts.Version == "" || facts.Latency <= 0 || len(facts.Hidden) != 0 ||
		time.Since(facts.Clock).Abs() > time.Minute {
		t.Errorf("%+v, %v", facts, err)
	}

	conn := dial(t, owner)
	readerURL, role := reader(t, conn, owner)
	exec(t, conn, "REVOKE SELECT ON directory_grant FROM "+role)
	facts, err = pgdb.Examine(ctx, pgdb.Config{URL: readerURL})
	if err != nil || !slices.Equal(facts.Hidden, []string{"directory_grant"}) {
		t.Errorf("%+v, %v", facts, err)
	}
	if _, err := pgdb.Examine(ctx, pgdb.Config{URL: "postgres://127.0.0.1:1/d?sslmode=disable"}); err == nil {
		t.Error("examined a database without a server")
	}
}
