package testenv

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestPostgres(t *testing.T) {
	type database struct {
		name, encoding string
		tables         int
	}
	describe := func(t *testing.T, connection *pgx.Conn) (is database) {
		t.Helper()
		err := connection.QueryRow(t.Context(), `SELECT current_database(), current_setting('server_encoding'),
			(SELECT count(*) FROM pg_tables WHERE schemaname = 'public')`).Scan(&is.name, &is.encoding, &is.tables)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}

	var used []string
	t.Run("is used", func(t *testing.T) {
		for range 2 {
			connection := connect(t, Postgres(t)) // still open when the database is dropped
			is := describe(t, connection)
			if is.encoding != "UTF8" || is.tables != 0 {
				t.Errorf("a fresh database has %d tables in %s, want 0 in UTF8", is.tables, is.encoding)
			}
			used = append(used, is.name)
			run(t, connection, "CREATE TABLE public.mine (id int)")
			if is := describe(t, connection); is.tables != 1 {
				t.Errorf("%d tables after one was created", is.tables)
			}
		}
	})
	if len(used) != 2 || used[0] == used[1] {
		t.Fatalf("databases %q, want two", used)
	}

	var left int
	base := connect(t, server(t, postgresVariable).String())
	err := base.QueryRow(t.Context(), "SELECT count(*) FROM pg_database WHERE datname = ANY ($1)", used).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d databases exist after their test (%v)", left, err)
	}
}

func TestPostgresServerEndsWithItsTest(t *testing.T) {
	var url string
	t.Run("is used", func(t *testing.T) {
		p := PostgresServer(t)
		url = p.URL()
		p.Kill()
		p.Start()
		connect(t, url)
	})
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("the server of an ended test accepts a connection")
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return connection
}

func run(t *testing.T, connection *pgx.Conn, statement string) {
	t.Helper()
	if _, err := connection.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}
