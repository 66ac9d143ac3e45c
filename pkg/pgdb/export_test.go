package pgdb

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// MigrateTo migrates to the schema of an older release.
func MigrateTo(ctx context.Context, url string, version int64) error {
	parsed, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*parsed)
	provider, err := newProvider(db)
	if err == nil {
		_, err = provider.UpTo(ctx, version)
	}
	if err == nil {
		_, err = provider.DownTo(ctx, version)
	}
	return errors.Join(err, db.Close())
}
