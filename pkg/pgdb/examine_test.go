package pgdb_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// A user who may not read a table is told which one.
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

	conn, err := pgx.Connect(ctx, owner)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	role := "reader_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	for _, step := range []string{
		"CREATE ROLE " + role + " LOGIN PASSWORD 'x'", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO " + role,
		"REVOKE SELECT ON directory_grant FROM " + role,
	} {
		if _, err := conn.Exec(ctx, step); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, step := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := conn.Exec(ctx, step); err != nil {
				t.Error(err)
			}
		}
	}()
	reader, err := url.Parse(owner)
	if err != nil {
		t.Fatal(err)
	}
	reader.User = url.UserPassword(role, "x")
	facts, err = pgdb.Examine(ctx, pgdb.Config{URL: reader.String()})
	if err != nil || !slices.Equal(facts.Hidden, []string{"directory_grant"}) {
		t.Errorf("%+v, %v", facts, err)
	}
	if _, err := pgdb.Examine(ctx, pgdb.Config{URL: "postgres://127.0.0.1:1/d?sslmode=disable"}); err == nil {
		t.Error("there is no server")
	}
}
