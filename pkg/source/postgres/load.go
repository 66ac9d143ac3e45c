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

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// LoadConfig configures a load.
type LoadConfig struct {
	Parallel      int           // concurrent merges, each in its own session
	DeleteMissing bool          // delete resources that are not in the load, of the types that are
	History       time.Duration // how long an ended version stays readable before it is trimmed
	Deletions     time.Duration // how long incremental exports know a deletion; at least History
}

// Load adds resources to the store. Stage takes them, Seal makes all of them visible at once to reads that begin later.
// A load that was not sealed is invisible, and the next load undoes it. Close ends a load in either case. One load runs
// at a time: otherwise the order of versions would be undefined.
//
// Stage copies rows into unlogged tables, one for each type. Seal merges each type: it ends the versions that are
// replaced and inserts the new ones in the order of patients, under the number of the load, which no reader sees yet.
// Then one short transaction gives the load its instant.
type Load struct {
	cfg  LoadConfig
	pool *pgxpool.Pool
	turn *pgdb.Turn // until Close
	no   int32

	making sync.Mutex
	made   map[string]bool // types with a table of staged rows

	mu         sync.Mutex
	staged     map[string]int64  // rows, by type
	deleted    map[string]int64  // rows of deletions, by type
	targets    int64             // rows of Provenance targets
	references *references.Table // by which the references of the staged lines were resolved; nil: they were literal
	total      Merged
	grown      map[string]change // by type
	touched    map[string]int64  // rows written, by type
}

// Merged counts what a load changed.
type Merged struct {
	Added     int64 // resources that the store did not have
	Replaced  int64 // newer versions
	Unchanged int64 // the store has this version or a newer one
	Deleted   int64 // also those whose newest version is refused
}

// turnLock is the advisory lock of the load that runs.
const turnLock = 0x736c7569636532 // "sluice2"

// loading has the settings of a load's sessions.
var loading = map[string]string{
	"jit": "off", "work_mem": "128MB", "maintenance_work_mem": "256MB", "synchronous_commit": "off",
}

// OpenLoader returns a pool for loads. No connection is made yet.
func OpenLoader(ctx context.Context, cfg pgdb.Config) (*pgxpool.Pool, error) {
	cfg.Settings = loading
	return pgdb.Open(ctx, cfg)
}

// BeginLoad undoes unfinished loads and begins a new one. It returns pgdb.ErrBusy while another runs. The pool is one of
// OpenLoader, with at least cfg.Parallel connections. The load has one more connection until Close.
func BeginLoad(ctx context.Context, pool *pgxpool.Pool, cfg LoadConfig) (_ *Load, err error) {
	l := &Load{
		cfg: cfg, pool: pool, staged: map[string]int64{}, deleted: map[string]int64{},
		grown: map[string]change{}, touched: map[string]int64{}, made: map[string]bool{},
	}
	l.cfg.Parallel = max(l.cfg.Parallel, 1)
	if l.turn, err = pgdb.TakeTurn(ctx, pool, turnLock); err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := l.undoUnsealed(ctx); err != nil {
		return nil, pgdb.Wrap("undo an unfinished load", err)
	}
	err = l.turn.QueryRow(ctx,
		"INSERT INTO load_batch (no) SELECT coalesce(max(no), 0) + 1 FROM load_batch RETURNING no").Scan(&l.no)
	if err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	if err := l.makeSchema(ctx); err != nil {
		return nil, pgdb.Wrap("begin the load", err)
	}
	return l, nil
}

// undoUnsealed undoes the merges of loads that were never sealed. It marks them abandoned first, which waits for a
// running merge; a load that lost its turn finds the mark in its next step and stops.
func (l *Load) undoUnsealed(ctx context.Context) error {
	_, err := l.turn.Exec(ctx, "UPDATE load_batch SET abandoned = true WHERE sealed_at IS NULL AND NOT abandoned")
	if err != nil {
		return err
	}
	rows, _ := l.turn.Query(ctx, "SELECT no FROM load_batch WHERE abandoned AND NOT undone") // rows returns the error
	left, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil || len(left) == 0 {
		return err
	}
	return pgx.BeginFunc(ctx, l.turn, func(tx pgx.Tx) error {
		several, err := typesOfSeveral(ctx, tx)
		if err != nil {
			return err
		}
		for _, text := range append(trimSeveral(several, "born = ANY($1)", "r.born <> ALL($1)"),
			"DELETE FROM resource WHERE born = ANY($1)",
			"UPDATE resource SET ended = NULL WHERE ended = ANY($1)",
			"DELETE FROM target WHERE born = ANY($1)",
			"DELETE FROM tombstone WHERE born = ANY($1)",
			"UPDATE load_batch SET undone = true WHERE no = ANY($1)",
		) {
			if _, err := tx.Exec(ctx, text, left); err != nil {
				return err
			}
		}
		return nil
	})
}

// inStep runs one step of the load in a transaction, unless another load has taken its turn.
func (l *Load) inStep(ctx context.Context, step func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		var abandoned bool
		err := tx.QueryRow(ctx, "SELECT abandoned FROM load_batch WHERE no = $1 FOR SHARE", l.no).Scan(&abandoned)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && abandoned {
			return errors.New("another load has taken the turn of this one")
		}
		if err != nil {
			return err
		}
		return step(tx)
	})
}

// Seal merges the staged resources and makes them visible. with runs in the transaction that does so; it may be nil.
// leftOut is what the caller left out; Source.LeftOut has it until a later load has the same types. An export that begins
// after Seal has returned sees the load: snapshots are in whole seconds, so Seal waits for the end of the second.
func (l *Load) Seal(
	ctx context.Context, leftOut []export.LeftOut, with func(context.Context, pgx.Tx) error,
) (Merged, error) {
	// Patients first: the others look up whether their patients are held.
	if err := l.merge(ctx, "Patient"); err != nil {
		return Merged{}, pgdb.Wrap("merge Patient", err)
	}
	types := slices.SortedFunc(maps.Keys(l.staged), func(a, b string) int { return cmp.Compare(l.staged[b], l.staged[a]) })
	for typ := range l.deleted {
		if l.staged[typ] == 0 {
			types = append(types, typ)
		}
	}
	group, merging := errgroup.WithContext(ctx)
	group.SetLimit(l.cfg.Parallel)
	for _, typ := range types {
		if typ != "Provenance" && typ != "Patient" {
			group.Go(func() error { return pgdb.Wrap("merge "+typ, l.merge(merging, typ)) })
		}
	}
	if err := group.Wait(); err != nil {
		return Merged{}, err
	}
	if err := l.confirm(ctx); err != nil {
		return Merged{}, err
	}
	// The patients of a Provenance depend on all other types.
	if err := l.merge(ctx, "Provenance"); err != nil {
		return Merged{}, pgdb.Wrap("merge Provenance", err)
	}
	if err := l.mention(ctx); err != nil {
		return Merged{}, pgdb.Wrap("record mentions", err)
	}
	sealed, err := l.publish(ctx, leftOut, with)
	if err != nil {
		return Merged{}, pgdb.Wrap("seal the load", err)
	}
	for _, cleanUp := range []func(context.Context) error{l.trim, l.vacuum} {
		if err := cleanUp(ctx); err != nil {
			return l.total, pgdb.Wrap("clean up after the load, which was sealed", err)
		}
	}
	return l.total, l.waitForNextSecond(ctx, sealed)
}

// publish gives the load its instant, later than every snapshot taken before.
func (l *Load) publish(
	ctx context.Context, leftOut []export.LeftOut, with func(context.Context, pgx.Tx) error,
) (sealed time.Time, err error) {
	err = l.inStep(ctx, func(tx pgx.Tx) error {
		// A sealed load survives a crash: the log is written in order, so this commit also makes the merges durable.
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on"); err != nil {
			return err
		}
		for typ, grown := range l.grown {
			if grown.size == (source.TypeSize{}) {
				continue // a row, even of zero resources, is of a type that was held once
			}
			_, err := tx.Exec(ctx, `INSERT INTO type_stats AS s (type, resources, bytes) VALUES ($1, $2, $3)
				ON CONFLICT (type) DO UPDATE SET resources = s.resources + $2, bytes = s.bytes + $3`,
				typ, grown.size.Resources, grown.size.Bytes)
			if err != nil {
				return err
			}
		}
		if err := l.publishLeftOut(ctx, tx, leftOut); err != nil {
			return err
		}
		if with != nil {
			if err := with(ctx, tx); err != nil {
				return err
			}
		}
		// Last: snapshots wait for this lock.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(sealLock)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `UPDATE load_batch SET sealed_at = greatest(clock_timestamp(),
			(SELECT max(sealed_at) + interval '1 microsecond' FROM load_batch)) WHERE no = $1 RETURNING sealed_at`, l.no).
			Scan(&sealed)
	})
	return sealed, err
}

// publishLeftOut updates the totals of what no export of patients contains.
func (l *Load) publishLeftOut(ctx context.Context, tx pgx.Tx, leftOut []export.LeftOut) error {
	types := append(slices.Collect(maps.Keys(l.staged)), "")
	for _, left := range leftOut {
		types = append(types, left.Type)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM left_out WHERE NOT held AND type = ANY($1)", types); err != nil {
		return err
	}
	add := func(list []export.LeftOut, held bool) error {
		for _, left := range list {
			_, err := tx.Exec(ctx, `INSERT INTO left_out AS o (type, reason, held, resources) VALUES ($1, $2, $3, $4)
				ON CONFLICT (type, reason, held) DO UPDATE SET resources = o.resources + $4`,
				left.Type, string(left.Reason), held, left.Count)
			if err != nil {
				return err
			}
		}
		return nil
	}
	for _, grown := range l.grown {
		if err := add(grown.leftOut.List(), true); err != nil {
			return err
		}
	}
	return add(leftOut, false)
}

// Unheld returns the number of resources that a sealed load added or replaced and whose patient the store does not hold,
// by type.
func (l *Load) Unheld() map[string]int64 {
	unheld := map[string]int64{}
	for typ, grown := range l.grown {
		if grown.unheld > 0 {
			unheld[typ] = grown.unheld
		}
	}
	return unheld
}

// LeftOut returns why no export of patients contains some Provenance of the store, after a load that was sealed and had
// any. Of all other types the reason shows when they are read.
func (l *Load) LeftOut(ctx context.Context) ([]export.LeftOut, error) {
	if l.staged["Provenance"] == 0 {
		return nil, nil
	}
	list, err := leftOut(ctx, l.turn, "WHERE held AND type = 'Provenance'")
	return list, pgdb.Wrap("read what is left out", err)
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

// Close drops the staged rows and ends the turn. A load that was not sealed has no effect.
func (l *Load) Close(ctx context.Context) error {
	if l.turn == nil {
		return nil
	}
	turn := l.turn
	l.turn = nil
	return pgdb.Wrap("close the load", turn.End(ctx, "DROP SCHEMA IF EXISTS "+stageSchema+" CASCADE"))
}

// vacuum marks new rows as committed. Otherwise the first export would mark them and write every page.
func (l *Load) vacuum(ctx context.Context) error {
	rows, _ := l.turn.Query(ctx, "SELECT type, resources FROM type_stats") // rows returns the error
	var stale []string
	var typ string
	var resources int64
	_, err := pgx.ForEachRow(rows, []any{&typ, &resources}, func() error {
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
