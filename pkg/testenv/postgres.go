package testenv

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Postgres returns the URL of an empty database that no other test uses: UTF8, sorted by bytes. It is dropped when the
// test ends, even if connections are still open.
func Postgres(t testing.TB) string {
	t.Helper()
	base := server(t, postgresVariable)
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if err := execute(base, "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"); err != nil {
		t.Fatalf("postgres at %s: %v", base.Host, err)
	}
	t.Cleanup(func() {
		if err := execute(base, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("postgres at %s: %v", base.Host, err)
		}
	})
	mine := *base
	mine.Path = "/" + name
	return mine.String()
}

// execute runs a statement on a new connection.
func execute(base *url.URL, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	connection, err := pgx.Connect(ctx, base.String())
	if err != nil {
		return err
	}
	_, err = connection.Exec(ctx, statement)
	return errors.Join(err, connection.Close(ctx))
}
