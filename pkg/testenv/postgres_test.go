package testenv

import (
	"errors"
	"os"
	"testing"
	"time"

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

// TestPostgresServer kills a server with an open transaction and a busy backend, and starts it again.
func TestPostgresServer(t *testing.T) {
	var dir, url string
	t.Run("is used", func(t *testing.T) {
		p := PostgresServer(t)
		dir, url = p.dir, p.URL()
		first := connect(t, url)
		run(t, first, "CREATE TABLE kept (id int)")
		run(t, first, "INSERT INTO kept VALUES (1)")
		open := connect(t, url)
		run(t, open, "BEGIN")
		run(t, open, "INSERT INTO kept VALUES (2)")

		busy := connect(t, url)
		ended := make(chan error, 1)
		go func() {
			_, err := busy.Exec(t.Context(), "DO $$ BEGIN LOOP END LOOP; END $$")
			ended <- err
		}()
		for deadline, active := time.Now().Add(time.Minute), false; !active; {
			err := first.QueryRow(t.Context(), "SELECT state = 'active' AND query LIKE 'DO%' FROM pg_stat_activity WHERE pid = $1",
				busy.PgConn().PID()).Scan(&active)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("the busy backend is not listed: %v", err)
			}
		}
		p.Kill()
		if err := <-ended; err == nil {
			t.Error("the busy backend's query succeeded")
		}
		if _, err := pgx.Connect(t.Context(), url); err == nil {
			t.Error("a killed server accepts a connection")
		}

		p.Start()
		if p.URL() != url {
			t.Error("the URL changed over Kill and Start")
		}
		rows, err := connect(t, url).Query(t.Context(), "SELECT id FROM kept")
		if err != nil {
			t.Fatal(err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
		if err != nil || len(ids) != 1 || ids[0] != 1 {
			t.Errorf("rows %v (%v), want the committed one alone", ids, err)
		}
	})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of an ended test: %v", err)
	}
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
