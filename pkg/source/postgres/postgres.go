// Package postgres is the source for populations: resources in PostgreSQL, a version a row, a table for each type, in
// the physical order of patients as they were loaded. Load (BeginLoad) fills it; Source reads it.
//
// Reads are consistent: a call with an AsOf gives what the newest load sealed at or before that instant left, whatever
// is loaded meanwhile. No transaction is held open for it, so an export keeps vacuum from nothing for longer than one
// query: old versions stay in the tables as rows until they are trimmed (Trim), which is what the past costs. A read
// that comes after the trimming of what it needs fails, it never gives less.
//
// A slice of patients costs what those patients cost, and a dense one what reading its range costs: each call counts
// how dense it is and chooses (choose.go).
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

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Source is a source.Source over a database that has been migrated (pgdb.Migrate).
type Source struct {
	pool *pgxpool.Pool

	mu       sync.Mutex
	held     shape // what was last read of the sizes
	heldTill time.Time
}

// sessions are the settings of every reading session. Queries are written for one path through one index, so that the
// planner has nothing to choose; workers and a compiler of its own would only take the processor from the export.
var sessions = map[string]string{
	"jit": "off", "max_parallel_workers_per_gather": "0", "enable_seqscan": "off", "enable_bitmapscan": "off",
	"default_transaction_read_only": "on",
}

// readBuffer is what a connection takes from the network at once: rows come faster than they can be compressed, so
// there is as much to take, and each taking is a call of the system.
const readBuffer = 128 << 10

// Open returns a source over the database. No connection is made yet: Check does that. The caller closes it.
func Open(ctx context.Context, cfg pgdb.Config) (*Source, error) {
	cfg.Settings, cfg.ReadBuffer = sessions, readBuffer
	pool, err := pgdb.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Source{pool: pool}, nil
}

// Close closes every connection, also those in use.
func (s *Source) Close() error {
	s.pool.Close()
	return nil
}

// Check reports whether the database can be reached and has the schema that this program needs.
func (s *Source) Check(ctx context.Context) error { return pgdb.Check(ctx, s.pool) }

// sealLock is held alone while a load is sealed, and shared while a snapshot is taken.
const sealLock = 0x736c7569636531 // "sluice1"

// Snapshot implements source.Source: it waits for a load that is being sealed and returns the database's clock. A load
// that is sealed later bears a later instant, so that it is no part of what the snapshot shows.
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

// shape is what the choice of a read path needs to know of a type.
type shape map[string]source.TypeSize

// Sizes implements source.Source. It tells what the newest sealed load left, exactly.
func (s *Source) Sizes(ctx context.Context) (source.Sizes, error) {
	rows, err := s.pool.Query(ctx, "SELECT type, resources, bytes FROM size WHERE resources > 0")
	if err != nil {
		return source.Sizes{}, pgdb.Wrap("read sizes", err)
	}
	sizes := source.Sizes{Types: map[string]source.TypeSize{}}
	var typ string
	var size source.TypeSize
	_, err = pgx.ForEachRow(rows, []any{&typ, &size.Resources, &size.Bytes}, func() error {
		sizes.Types[typ] = size
		return nil
	})
	sizes.Patients = sizes.Types["Patient"].Resources
	return sizes, pgdb.Wrap("read sizes", err)
}

// shapeNow returns the sizes as they were some seconds ago at most: they only decide which path is quicker.
func (s *Source) shapeNow(ctx context.Context) (shape, error) {
	const fresh = 30 * time.Second
	s.mu.Lock()
	held, till := s.held, s.heldTill
	s.mu.Unlock()
	if time.Now().Before(till) {
		return held, nil
	}
	sizes, err := s.Sizes(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.held, s.heldTill = sizes.Types, time.Now().Add(fresh)
	s.mu.Unlock()
	return sizes.Types, nil
}

// Problems implements source.Source: the database holds only what could be read. What could not was told by the load.
func (s *Source) Problems(context.Context, []string, func(source.Problem) error) error { return nil }

// leaf is the quoted name of the table that holds a type. The type must be exportable.
func leaf(typ string) string { return pgx.Identifier{"resource_" + strings.ToLower(typ)}.Sanitize() }

// errTrimmed says that a read came too late.
var errTrimmed = errors.New("what the store held at the job's snapshot was trimmed away; keep more history")

func errNoType(typ string) error {
	if fhir.IsType(typ) {
		return fmt.Errorf("%s cannot be asked for so", typ)
	}
	return errors.New("not a resource type of FHIR R4")
}
