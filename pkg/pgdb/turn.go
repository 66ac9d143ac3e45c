package pgdb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrBusy means that another load holds the turn.
var ErrBusy = errors.New("another load is running")

// Turn is a session that holds an advisory lock, so that only one load of a kind runs at a time.
type Turn struct{ *pgx.Conn }

// TakeTurn takes a connection out of the pool and locks the key with it. It returns ErrBusy if another session has the
// lock.
func TakeTurn(ctx context.Context, pool *pgxpool.Pool, key int64) (*Turn, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	turn := &Turn{conn.Hijack()}
	var locked bool
	err = turn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", key).Scan(&locked)
	if err == nil && !locked {
		err = ErrBusy
	}
	if err != nil {
		return nil, errors.Join(err, turn.Close(context.WithoutCancel(ctx)))
	}
	return turn, nil
}

// End runs the statement, releases the lock and closes the session. The server also releases the lock when a session
// ends, but too late for a load that starts immediately.
func (t *Turn) End(ctx context.Context, statement string) error {
	_, err := t.Exec(ctx, statement)
	if err == nil {
		_, err = t.Exec(ctx, "SELECT pg_advisory_unlock_all()")
	}
	return errors.Join(err, t.Close(ctx))
}

// CheckStaged returns an error unless an unlogged table has all of its rows: a crash of the server empties it, and a
// pool that reconnects does not report that.
func CheckStaged(ctx context.Context, tx pgx.Tx, table string, want int64) error {
	var kept int64
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&kept); err != nil {
		return err
	}
	if kept != want {
		return fmt.Errorf("%d of %d staged rows are left: the server has crashed; load again", kept, want)
	}
	return nil
}
