package pgdb

import (
	"context"
	"crypto/x509"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

// Migrations keep services of the previous release working, because both releases run side by side during a rollout.
//
//go:embed migrations/*.sql
var migrations embed.FS

// errEncoding: another encoding cannot store all text that FHIR allows.
var errEncoding = errors.New("the database must have the encoding UTF8")

// Migrate brings the database to this program's schema and returns the schema version. Concurrent calls run one after
// another. A newer schema is left unchanged.
func Migrate(ctx context.Context, url string) (version int64, err error) {
	return MigrateTrusting(ctx, url, nil)
}

// MigrateTrusting is Migrate with these root certificates for the connection; nil means the system's.
func MigrateTrusting(ctx context.Context, url string, roots *x509.CertPool) (version int64, err error) {
	parsed, err := pgx.ParseConfig(url)
	if err != nil {
		return 0, notURL(err)
	}
	secure(&parsed.Config, roots)
	db := stdlib.OpenDB(*parsed)
	defer func() { err = errors.Join(err, db.Close()) }()
	var encoding string
	if err := db.QueryRowContext(ctx, "SHOW server_encoding").Scan(&encoding); err != nil {
		return 0, Wrap("migrate the database", err)
	}
	if encoding != "UTF8" {
		return 0, errEncoding
	}
	provider, err := newProvider(db)
	if err != nil {
		return 0, err
	}
	if _, err := provider.Up(ctx); err != nil {
		return 0, Wrap("migrate the database", err)
	}
	version, err = provider.GetDBVersion(ctx)
	return version, Wrap("migrate the database", err)
}

// Check returns an error unless the database has the schema that this program needs, or a newer one. It writes nothing,
// so a read-only session can call it.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	db := stdlib.OpenDBFromPool(pool)
	provider, err := newProvider(db)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	var needs int64
	for _, migration := range provider.ListSources() {
		needs = max(needs, migration.Version)
	}
	has, err := version(ctx, db)
	if err := Wrap("check the database's schema", errors.Join(err, db.Close())); err != nil {
		return err
	}
	if has < needs {
		return fmt.Errorf("the database's schema has version %d and %d is needed: run sluice admin migrate", has, needs)
	}
	return nil
}

// version returns the schema version, 0 for a database without schema. Provider.GetDBVersion is not used because it
// creates the table of migrations when it is missing.
func version(ctx context.Context, db *sql.DB) (int64, error) {
	store, err := database.NewStore(database.DialectPostgres, versions)
	if err != nil {
		return 0, err
	}
	has, err := store.GetLatestVersion(ctx, db)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == undefinedTable {
		return 0, nil
	}
	return has, err
}

const (
	versions       = "sluice_migration" // the table of goose
	undefinedTable = "42P01"
)

func newProvider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	turns, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(turns), goose.WithDisableGlobalRegistry(true), goose.WithTableName(versions))
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return provider, nil
}
