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
	pool  *pgxpool.Pool
	now   func() time.Time
	check func(Missing) error // may be nil
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

// active is the condition on a row with a period at the instant $2.
const active = "NOT inactive AND starts <= $2 AND ends > $2"

// reached is a recursive query: the group $1, if it can be exported, and the groups in it at the instant $2, to any depth.
const reached = `reached AS (
		SELECT id, exportable FROM directory_group WHERE id = $1 AND exportable
	UNION
		SELECT s.member, coalesce(g.exportable, false) FROM reached AS r
		JOIN directory_subgroup AS s ON s.group_id = r.id AND r.exportable AND ` + active + `
		LEFT JOIN directory_group AS g ON g.id = s.member)`

// selectMembers returns rows of three kinds: one without values if the group can be exported, a patient, or a reason with
// a number of members. It is one statement, so that all groups and members are of one snapshot. The server streams the
// members without sorting or hashing: OFFSET 0 makes it read them by the index, group by group.
const selectMembers = `WITH RECURSIVE ` + reached + `
	SELECT NULL::text, NULL::text, 0::bigint FROM reached WHERE id = $1
	UNION ALL SELECT m.patient, NULL, 0 FROM reached AS r
		CROSS JOIN LATERAL (SELECT patient FROM directory_member WHERE group_id = r.id AND ` + active + ` OFFSET 0) AS m
		WHERE r.exportable
	UNION ALL SELECT NULL, '` + string(export.MemberGroup) + `', count(*) FROM reached WHERE NOT exportable
	UNION ALL SELECT NULL, l.reason, sum(l.members)::bigint FROM reached AS r
		JOIN directory_left_out AS l ON l.group_id = r.id AND ` + active + ` WHERE r.exportable GROUP BY l.reason`

// Members implements directory.Groups.
func (g *Groups) Members(
	ctx context.Context, groupID string, yield func(patientID string) error,
) ([]export.LeftOut, error) {
	return g.stream(ctx, groupID, yield, selectMembers, g.now())
}

// stream runs a query with the columns of selectMembers.
func (g *Groups) stream(
	ctx context.Context, groupID string, yield func(patientID string) error, text string, args ...any,
) ([]export.LeftOut, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !fhir.IsID(groupID) {
		return nil, directory.ErrNoGroup
	}
	rows, _ := g.pool.Query(ctx, text, append([]any{groupID}, args...)...) // rows returns the error
	found := false
	var patient, reason *string
	var number int64
	var leftOut export.Tally
	var refused error // of yield, returned unchanged
	_, err := pgx.ForEachRow(rows, []any{&patient, &reason, &number}, func() error {
		switch {
		case patient != nil:
			if refused = ctx.Err(); refused == nil {
				refused = yield(*patient)
			}
		case reason != nil:
			leftOut.Add("", export.Reason(*reason), number)
		default:
			found = true
		}
		return refused
	})
	switch {
	case refused != nil:
		return nil, refused
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil && !found:
		return nil, directory.ErrNoGroup
	case err != nil:
		return nil, wrap("read the members of group "+groupID, err)
	}
	return leftOut.List(), nil
}

// errNotMigrated is an outage that ends with the migration, because services start in any order.
var errNotMigrated = fmt.Errorf("%w: the database has no tables of the directory: run sluice admin migrate",
	export.ErrUnavailable)

// wrap is pgdb.Wrap, with errNotMigrated for a missing table. ErrNoGroup, ErrGroupExists and errors of a check are
// returned unchanged.
func wrap(act string, err error) error {
	var checked checkedError
	if errors.As(err, &checked) {
		return checked.error
	}
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
