package pgdir

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// sessions are the settings of every session: a group is read through the index on groups, however many members the
// others have, and compiling or dividing questions as small as these costs more than they do.
var sessions = map[string]string{
	"jit": "off", "max_parallel_workers_per_gather": "0", "enable_seqscan": "off",
}

// Open returns a pool for NewGroups and NewAccess, which the caller closes. No connection is made yet.
func Open(ctx context.Context, cfg pgdb.Config) (*pgxpool.Pool, error) {
	cfg.Settings = sessions
	return pgdb.Open(ctx, cfg)
}

// Groups is directory.Groups on a database. Its methods may be called from any goroutine. Those that change something
// change all of it or nothing.
type Groups struct {
	pool *pgxpool.Pool
	now  func() time.Time
}

var _ directory.Groups = (*Groups)(nil)

// NewGroups returns the groups of the pool's database. The clock decides which members' periods cover the present. A
// stream of members keeps one of the pool's connections until it ends.
func NewGroups(pool *pgxpool.Pool, now func() time.Time) *Groups {
	return &Groups{pool: pool, now: now}
}

// Check reports whether the database can be reached and has the schema that this program needs.
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
	if err != nil {
		return wrap("look for the group "+groupID, err)
	}
	if !exists {
		return directory.ErrNoGroup
	}
	return nil
}

// Members implements directory.Groups.
func (g *Groups) Members(ctx context.Context, groupID string, yield func(patientID string) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !fhir.IsID(groupID) {
		return directory.ErrNoGroup
	}
	// One statement, so that the group and its members are of one snapshot. It neither sorts nor hashes the members: the
	// server sends them as it finds them. A group without any gives one row without a patient.
	rows, err := g.pool.Query(ctx, `SELECT m.patient FROM directory_group AS g
		LEFT JOIN directory_member AS m ON m.group_id = $1 AND NOT m.inactive AND m.starts <= $2 AND m.ends > $2
		WHERE g.id = $1 AND g.exportable`, groupID, g.now())
	act := "read the members of group " + groupID
	if err != nil {
		return wrap(act, err)
	}
	defer rows.Close()
	found := false
	for rows.Next() {
		found = true
		var patient *string
		if err := rows.Scan(&patient); err != nil {
			return wrap(act, err)
		}
		if patient == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(*patient); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := rows.Err(); err != nil {
		return wrap(act, err)
	}
	if !found {
		return directory.ErrNoGroup
	}
	return nil
}

// errNotMigrated passes as soon as somebody migrates the database: services start in any order.
var errNotMigrated = fmt.Errorf("%w: the database has no tables of the directory: run sluice admin migrate",
	export.ErrUnavailable)

// wrap is pgdb.Wrap for statements that are right once the database is migrated.
func wrap(act string, err error) error {
	const undefinedTable = "42P01"
	var told *pgconn.PgError
	if errors.As(err, &told) && told.Code == undefinedTable {
		return fmt.Errorf("%s: %w", act, errNotMigrated)
	}
	return pgdb.Wrap(act, err)
}
