package pgdir

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// sessions has the settings of every session: a group is always read by the index, and for such small queries JIT and
// parallel workers cost more than they save.
var sessions = map[string]string{
	"jit": "off", "max_parallel_workers_per_gather": "0", "enable_seqscan": "off",
}

// Open returns a pool for NewGroups and NewAccess, which the caller closes. It does not connect.
func Open(ctx context.Context, cfg pgdb.Config) (*pgxpool.Pool, error) {
	cfg.Settings = sessions
	return pgdb.Open(ctx, cfg)
}

// Groups implements directory.Groups on a database, and the changes by operators. Methods may be called concurrently.
// Changes are atomic.
type Groups struct {
	pool *pgxpool.Pool
	now  func() time.Time
}

var _ directory.Groups = (*Groups)(nil)

// NewGroups returns the groups of the pool's database. Periods are compared with the clock. Members and Roll hold one
// connection of the pool until they return.
func NewGroups(pool *pgxpool.Pool, now func() time.Time) *Groups {
	return &Groups{pool: pool, now: now}
}

// Check returns an error unless the database is reachable and has the schema that this program needs.
func (g *Groups) Check(ctx context.Context) error { return pgdb.Check(ctx, g.pool) }

// Exists implements directory.Groups.
func (g *Groups) Exists(ctx context.Context, groupID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !fhir.IsID(groupID) {
		return directory.ErrNoGroup
	}
	var exists bool
	err := g.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM directory_group WHERE id = $1 AND exportable)", groupID).
		Scan(&exists)
	if err == nil && !exists {
		err = directory.ErrNoGroup
	}
	return wrap("look up the group "+groupID, err)
}

// Members implements directory.Groups.
func (g *Groups) Members(ctx context.Context, groupID string, yield func(patientID string) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !fhir.IsID(groupID) {
		return directory.ErrNoGroup
	}
	// One statement, so that the group and its members are of one snapshot. The server streams the members without
	// sorting or hashing. A group without members is one row without a patient.
	rows, _ := g.pool.Query(ctx, `SELECT m.patient FROM directory_group AS g
		LEFT JOIN directory_member AS m ON m.group_id = $1 AND NOT m.inactive AND m.starts <= $2 AND m.ends > $2
		WHERE g.id = $1 AND g.exportable`, groupID, g.now()) // rows returns the error
	found := false
	var patient *string
	var refused error // of yield, returned unchanged
	_, err := pgx.ForEachRow(rows, []any{&patient}, func() error {
		found = true
		if patient == nil {
			return nil
		}
		if refused = ctx.Err(); refused == nil {
			refused = yield(*patient)
		}
		return refused
	})
	switch {
	case refused != nil:
		return refused
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && !found:
		return directory.ErrNoGroup
	}
	return wrap("read the members of group "+groupID, err)
}

// errNotMigrated is an outage that ends with the migration, because services start in any order.
var errNotMigrated = fmt.Errorf("%w: the database has no tables of the directory: run sluice admin migrate",
	export.ErrUnavailable)

// wrap is pgdb.Wrap, with errNotMigrated for a missing table. ErrNoGroup and ErrGroupExists are returned unchanged.
func wrap(act string, err error) error {
	if errors.Is(err, directory.ErrNoGroup) || errors.Is(err, ErrGroupExists) {
		return err
	}
	const undefinedTable = "42P01"
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == undefinedTable {
		return fmt.Errorf("%s: %w", act, errNotMigrated)
	}
	return pgdb.Wrap(act, err)
}
