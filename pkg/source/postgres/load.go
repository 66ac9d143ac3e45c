package postgres

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// ErrBusy says that another load is under way. One loads at a time: what is newer than what could not be told otherwise.
var ErrBusy = errors.New("another load is under way")

// LoadConfig says how to load.
type LoadConfig struct {
	Parallel      int           // merges at once; each is a session of the server
	DeleteMissing bool          // delete what is not in the load, of the types that are
	History       time.Duration // for how long what ended can still be read; older versions are trimmed
}

// Load brings resources into the store: Stage takes them, Seal shows them all at once to the reads that begin then.
// A load that is not sealed, because it failed or was killed at any instant, is seen by nobody, and the next one takes
// it back. Close ends either.
//
// It goes in three steps. Stage copies rows into unlogged tables, a table for each type. Seal first merges each type:
// it ends the versions that are replaced and inserts the new ones in the order of patients, numbered with the load,
// which no reader sees yet. Then one short transaction gives the load its instant.
type Load struct {
	cfg  LoadConfig
	pool *pgxpool.Pool
	turn *pgxpool.Conn // holds the turn until Close
	no   int32

	mu      sync.Mutex
	staged  map[string]int64 // rows, by type
	targets int64            // rows of what Provenance targets
	total   Merged
	delta   map[string]source.TypeSize
	touched map[string]int64 // rows written, by type
}

// Merged says what a load changed.
type Merged struct {
	Added     int64 // resources that the store did not hold
	Replaced  int64 // newer versions
	Unchanged int64 // held already, or a newer version is
	Deleted   int64
}

// turnLock is held by the session of the one load that is under way.
const turnLock = 0x736c7569636532 // "sluice2"

// loading are the settings of a load's sessions.
var loading = map[string]string{
	"jit": "off", "work_mem": "128MB", "maintenance_work_mem": "256MB", "synchronous_commit": "off",
}

// OpenLoader returns a pool for loads. No connection is made yet.
func OpenLoader(ctx context.Context, cfg pgdb.Config) (*pgxpool.Pool, error) {
	cfg.Settings = loading
	return pgdb.Open(ctx, cfg)
}

// BeginLoad takes the turn, takes back what an unfinished load has left, and begins a new one. ErrBusy says that it is
// another's turn. The pool is one of OpenLoader, with more connections than cfg.Parallel.
func BeginLoad(ctx context.Context, pool *pgxpool.Pool, cfg LoadConfig) (_ *Load, err error) {
	l := &Load{
		cfg: cfg, pool: pool,
		staged: map[string]int64{}, delta: map[string]source.TypeSize{}, touched: map[string]int64{},
	}
	l.cfg.Parallel = max(l.cfg.Parallel, 1)
	if l.turn, err = pool.Acquire(ctx); err != nil {
		return nil, pgdb.Wrap("connect to the store", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close(context.WithoutCancel(ctx)))
		}
	}()
	var mine bool
	if err := l.turn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(turnLock)).Scan(&mine); err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	if !mine {
		return nil, ErrBusy
	}
	if err := l.takeBack(ctx); err != nil {
		return nil, pgdb.Wrap("take back an unfinished load", err)
	}
	err = l.turn.QueryRow(ctx,
		"INSERT INTO load (no) SELECT coalesce(max(no), 0) + 1 FROM load RETURNING no").Scan(&l.no)
	if err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	if err := l.makeStage(ctx); err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	return l, nil
}

// takeBack undoes what loads that were never sealed have merged. Marking them abandoned comes first and waits for
// their merges: one that goes on after its session lost the turn finds the mark and stops (fenced).
func (l *Load) takeBack(ctx context.Context) error {
	_, err := l.turn.Exec(ctx, "UPDATE load SET abandoned = true WHERE sealed_at IS NULL AND NOT abandoned")
	if err != nil {
		return err
	}
	rows, err := l.turn.Query(ctx, "SELECT no FROM load WHERE abandoned AND NOT undone")
	if err != nil {
		return err
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil || len(left) == 0 {
		return err
	}
	return pgx.BeginFunc(ctx, l.turn, func(tx pgx.Tx) error {
		for _, text := range []string{
			"DELETE FROM resource WHERE born = ANY($1)",
			"UPDATE resource SET ended = NULL WHERE ended = ANY($1)",
			"DELETE FROM target WHERE born = ANY($1)",
			"DELETE FROM tombstone WHERE born = ANY($1)",
			"UPDATE load SET undone = true WHERE no = ANY($1)",
		} {
			if _, err := tx.Exec(ctx, text, left); err != nil {
				return err
			}
		}
		return nil
	})
}

// inStep runs one step of the load in a transaction, as long as the load is still the one whose turn it is.
func (l *Load) inStep(ctx context.Context, step func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		var abandoned bool
		err := tx.QueryRow(ctx, "SELECT abandoned FROM load WHERE no = $1 FOR SHARE", l.no).Scan(&abandoned)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && abandoned {
			return errors.New("the load lost its turn to another one")
		}
		if err != nil {
			return err
		}
		return step(tx)
	})
}

// Seal merges what was staged and shows it. also takes part in the transaction that does: it may be nil. When Seal
// returns, an export that begins shows the load: the snapshot's instant is in whole seconds, so it waits for the end
// of the second.
func (l *Load) Seal(ctx context.Context, also func(context.Context, pgx.Tx) error) (Merged, error) {
	types := slices.SortedFunc(maps.Keys(l.staged), func(a, b string) int { return cmp.Compare(l.staged[b], l.staged[a]) })
	group, merging := errgroup.WithContext(ctx)
	group.SetLimit(l.cfg.Parallel)
	for _, typ := range types {
		if typ != "Provenance" {
			group.Go(func() error { return pgdb.Wrap("merge "+typ, l.merge(merging, typ)) })
		}
	}
	if err := group.Wait(); err != nil {
		return Merged{}, err
	}
	// Whom a Provenance is about hangs on all the others.
	if err := l.mergeProvenance(ctx, slices.Contains(types, "Provenance")); err != nil {
		return Merged{}, pgdb.Wrap("merge Provenance", err)
	}
	sealed, err := l.show(ctx, also)
	if err != nil {
		return Merged{}, pgdb.Wrap("seal the load", err)
	}
	for _, settle := range []func(context.Context) error{l.trim, l.vacuum} {
		if err := settle(ctx); err != nil {
			return l.total, pgdb.Wrap("tidy up after the load, which is in", err)
		}
	}
	return l.total, l.waitForNextSecond(ctx, sealed)
}

// show gives the load its instant, later than every snapshot that was taken before.
func (l *Load) show(ctx context.Context, also func(context.Context, pgx.Tx) error) (sealed time.Time, err error) {
	err = l.inStep(ctx, func(tx pgx.Tx) error {
		// What is shown must not be gone after a crash. The log is written in order: the merges are safe with it.
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on"); err != nil {
			return err
		}
		for typ, delta := range l.delta {
			_, err := tx.Exec(ctx, `INSERT INTO size AS s (type, resources, bytes) VALUES ($1, $2, $3)
				ON CONFLICT (type) DO UPDATE SET resources = s.resources + $2, bytes = s.bytes + $3`,
				typ, delta.Resources, delta.Bytes)
			if err != nil {
				return err
			}
		}
		if also != nil {
			if err := also(ctx, tx); err != nil {
				return err
			}
		}
		// Last, as snapshots wait for it.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(sealLock)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `UPDATE load SET sealed_at = greatest(clock_timestamp(),
			(SELECT max(sealed_at) + interval '1 microsecond' FROM load)) WHERE no = $1 RETURNING sealed_at`, l.no).Scan(&sealed)
	})
	return sealed, err
}

func (l *Load) waitForNextSecond(ctx context.Context, sealed time.Time) error {
	var wait float64 // seconds, by the database's clock
	err := l.turn.QueryRow(ctx,
		`SELECT greatest(extract(epoch FROM date_trunc('second', $1::timestamptz) + interval '1 second'
			- clock_timestamp()), 0)::float8`, sealed).Scan(&wait)
	if err != nil {
		return pgdb.Wrap("seal the load", err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(wait * float64(time.Second))):
		return nil
	}
}

// Close gives up what is staged and the turn. A load that was not sealed is gone with it.
func (l *Load) Close(ctx context.Context) error {
	if l.turn == nil {
		return nil
	}
	var err error
	if l.no != 0 { // it had the turn
		_, err = l.turn.Exec(ctx, "DROP SCHEMA IF EXISTS "+stageSchema+" CASCADE")
		if err == nil {
			// The end of the session would free it as well, but some time after.
			_, err = l.turn.Exec(ctx, "SELECT pg_advisory_unlock($1)", int64(turnLock))
		}
	}
	conn := l.turn.Hijack()
	l.turn = nil
	return pgdb.Wrap("close the load", errors.Join(err, conn.Close(ctx)))
}

// count adds a change of what is visible of a type.
func (l *Load) count(typ string, delta source.TypeSize, merged Merged) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := l.delta[typ]
	size.Resources += delta.Resources
	size.Bytes += delta.Bytes
	l.delta[typ] = size
	l.touched[typ] += merged.Added + merged.Replaced + merged.Deleted
	l.total.Added += merged.Added
	l.total.Replaced += merged.Replaced
	l.total.Unchanged += merged.Unchanged
	l.total.Deleted += merged.Deleted
}

// vacuum spares the first export what PostgreSQL does at the first reading of a new row: marking it as committed.
func (l *Load) vacuum(ctx context.Context) error {
	rows, err := l.turn.Query(ctx, "SELECT type, resources FROM size")
	if err != nil {
		return err
	}
	var stale []string
	var typ string
	var resources int64
	_, err = pgx.ForEachRow(rows, []any{&typ, &resources}, func() error {
		if l.touched[typ] > resources/10 {
			stale = append(stale, typ)
		}
		return nil
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(l.cfg.Parallel)
	for _, typ := range stale {
		group.Go(func() error {
			_, err := l.pool.Exec(ctx, "VACUUM (ANALYZE) "+leaf(typ))
			return err
		})
	}
	return group.Wait()
}
