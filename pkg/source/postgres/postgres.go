// Package postgres is the source for populations: resources in PostgreSQL, one row for each version, one table for each
// type, in the physical order of patients. Load (BeginLoad) writes them; Source reads them.
//
// Reads are consistent: a call with an AsOf returns the state of the newest load sealed at or before that instant,
// regardless of later loads. Old versions stay in the tables until a load trims them, so no transaction is held
// open, and an export delays vacuum no longer than one query does. A read fails when versions that it needs were
// trimmed; it never returns an incomplete result.
//
// A call reads either each patient by the index or the whole range of patients, whichever is cheaper (choose.go).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Source is a source.Source on a migrated database (pgdb.Migrate).
type Source struct {
	pool *pgxpool.Pool

	mu        sync.Mutex
	sizes     sizes // cached
	sizesTill time.Time
}

// sessions are the settings of every reading session. Each query is written for one index, so the planner must not
// choose another path; parallel workers and JIT would take CPU from the export.
var sessions = map[string]string{
	"jit": "off", "max_parallel_workers_per_gather": "0", "enable_seqscan": "off", "enable_bitmapscan": "off",
	"enable_memoize":                "off", // it would keep the rows of a load in memory
	"default_transaction_read_only": "on",
}

// readBuffer is the read buffer of a connection, in bytes. Rows arrive faster than the export compresses them, so a
// large buffer saves system calls.
const readBuffer = 128 << 10

// Open returns a source on the database. It does not connect; Check does. The caller closes it.
func Open(ctx context.Context, cfg pgdb.Config) (*Source, error) {
	cfg.Settings, cfg.ReadBuffer = sessions, readBuffer
	pool, err := pgdb.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Source{pool: pool}, nil
}

// Close closes every connection, including those in use.
func (s *Source) Close() error {
	s.pool.Close()
	return nil
}

// Check returns an error unless the database is reachable and has the schema that this program needs.
func (s *Source) Check(ctx context.Context) error { return pgdb.Check(ctx, s.pool) }

// sealLock is held exclusively while a load is sealed, and shared while a snapshot is taken.
const sealLock = 0x736c7569636531 // "sluice1"

// Snapshot implements source.Source. It waits for a load that is being sealed and returns the database's clock. A load
// that is sealed later has a later instant, so the snapshot does not include it.
func (s *Source) Snapshot(ctx context.Context, _ time.Time) (time.Time, error) {
	var at time.Time
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock_shared($1)", int64(sealLock)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT date_trunc('second', clock_timestamp())").Scan(&at)
	})
	return at.UTC(), pgdb.Wrap("take a snapshot", err)
}

// sizes are those of source.Sizes.Types.
type sizes map[string]source.TypeSize

// Sizes implements source.Source. The sizes are exact, as of the newest sealed load.
func (s *Source) Sizes(ctx context.Context) (source.Sizes, error) {
	rows, _ := s.pool.Query(ctx, "SELECT type, resources, bytes FROM type_stats") // rows returns the error
	all := source.Sizes{Types: map[string]source.TypeSize{}}
	var typ string
	var size source.TypeSize
	_, err := pgx.ForEachRow(rows, []any{&typ, &size.Resources, &size.Bytes}, func() error {
		all.Types[typ] = size
		return nil
	})
	if err != nil {
		return all, pgdb.Wrap("read sizes", err)
	}
	all.Patients = all.Types["Patient"].Resources
	var since *time.Time // NULL when no record was deleted
	err = s.pool.QueryRow(ctx, "SELECT max(b.sealed_at) FROM trim_horizon JOIN load_batch AS b ON b.no = deletions").
		Scan(&since)
	if since != nil {
		all.DeletionsSince = since.UTC()
	}
	return all, pgdb.Wrap("read the oldest deletion", err)
}

// recentSizes returns sizes that may be some seconds old: they only decide which path is cheaper.
func (s *Source) recentSizes(ctx context.Context) (sizes, error) {
	const fresh = 30 * time.Second
	s.mu.Lock()
	cached, till := s.sizes, s.sizesTill
	s.mu.Unlock()
	if time.Now().Before(till) {
		return cached, nil
	}
	all, err := s.Sizes(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.sizes, s.sizesTill = all.Types, time.Now().Add(fresh)
	s.mu.Unlock()
	return all.Types, nil
}

// LeftOut implements source.Source. Loads keep the totals, as of the newest sealed load.
func (s *Source) LeftOut(ctx context.Context) ([]export.LeftOut, error) {
	list, err := leftOut(ctx, s.pool, "")
	return list, pgdb.Wrap("read what is left out", err)
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, text string, args ...any) (pgx.Rows, error)
}

func leftOut(ctx context.Context, from querier, where string) ([]export.LeftOut, error) {
	rows, _ := from.Query(ctx, // rows returns the error
		"SELECT type, reason, sum(resources)::bigint FROM left_out "+where+" GROUP BY type, reason HAVING sum(resources) > 0")
	return pgx.CollectRows(rows, pgx.RowToStructByPos[export.LeftOut])
}

// leaf returns the quoted name of the table of a stored type.
func leaf(typ string) string { return pgx.Identifier{"resource_" + strings.ToLower(typ)}.Sanitize() }

var errTrimmed = errors.New("versions of the job's snapshot were trimmed; keep more history")

func errNoType(typ string) error {
	if fhir.IsType(typ) {
		return fmt.Errorf("%s cannot be read this way", typ)
	}
	return errors.New("not a resource type of FHIR R4")
}
