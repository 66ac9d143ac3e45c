package pgdir

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// ErrGroupExists says that there is a group of the id already, exportable or not.
var ErrGroupExists = errors.New("there is such a group already")

// Group is what an operator sees of one.
type Group struct {
	ID          string
	Exportable  bool
	LastUpdated *time.Time // meta.lastUpdated of what was loaded, if any
	Members     int64      // patients that the group knows
	Current     int64      // those among them who count now
}

// Member is a patient in a group.
type Member struct {
	Patient string
	Joined  time.Time // when the patient was first known to be in the group
	Current bool      // whether the patient counts now
}

const selectGroups = `SELECT g.id, g.exportable, g.last_updated, count(DISTINCT m.patient),
	count(DISTINCT m.patient) FILTER (WHERE NOT m.inactive AND m.starts <= $1 AND m.ends > $1)
	FROM directory_group AS g LEFT JOIN directory_member AS m ON m.group_id = g.id `

func scanGroup(row pgx.CollectableRow) (g Group, err error) {
	err = row.Scan(&g.ID, &g.Exportable, &g.LastUpdated, &g.Members, &g.Current)
	return g, err
}

// List returns every group by id, also those that cannot be exported.
func (g *Groups) List(ctx context.Context) ([]Group, error) {
	rows, err := g.pool.Query(ctx, selectGroups+"GROUP BY g.id ORDER BY g.id", g.now())
	if err != nil {
		return nil, wrap("list groups", err)
	}
	list, err := pgx.CollectRows(rows, scanGroup)
	return list, wrap("list groups", err)
}

// Show returns a group, also one that cannot be exported. directory.ErrNoGroup when there is none.
func (g *Groups) Show(ctx context.Context, groupID string) (Group, error) {
	if !fhir.IsID(groupID) {
		return Group{}, directory.ErrNoGroup
	}
	rows, err := g.pool.Query(ctx, selectGroups+"WHERE g.id = $2 GROUP BY g.id", g.now(), groupID)
	if err != nil {
		return Group{}, wrap("read the group "+groupID, err)
	}
	group, err := pgx.CollectExactlyOneRow(rows, scanGroup)
	if errors.Is(err, pgx.ErrNoRows) {
		return Group{}, directory.ErrNoGroup
	}
	return group, wrap("read the group "+groupID, err)
}

// Roll streams everybody that a group knows, each patient once, by id. A group that is not there has nobody.
func (g *Groups) Roll(ctx context.Context, groupID string, yield func(Member) error) error {
	rows, err := g.pool.Query(ctx, `SELECT patient, min(joined), bool_or(NOT inactive AND starts <= $2 AND ends > $2)
		FROM directory_member WHERE group_id = $1 GROUP BY patient ORDER BY patient`, groupID, g.now())
	if err != nil {
		return wrap("read the members of group "+groupID, err)
	}
	defer rows.Close()
	for rows.Next() {
		var member Member
		if err := rows.Scan(&member.Patient, &member.Joined, &member.Current); err != nil {
			return wrap("read the members of group "+groupID, err)
		}
		if err := yield(member); err != nil {
			return err
		}
	}
	return wrap("read the members of group "+groupID, rows.Err())
}

// Patients are ids of patients, as they come. The first error ends whatever they are for, and comes back.
type Patients = iter.Seq2[string, error]

// Create makes a group of the patients and returns how many they are. ErrGroupExists when there is one of the id.
func (g *Groups) Create(ctx context.Context, groupID string, patients Patients) (members int64, err error) {
	return g.edit(ctx, groupID, patients, func(tx pgx.Tx) error {
		made, err := tx.Exec(ctx,
			"INSERT INTO directory_group (id, exportable) VALUES ($1, true) ON CONFLICT DO NOTHING", groupID)
		if err == nil && made.RowsAffected() == 0 {
			err = ErrGroupExists
		}
		return err
	}, insertNamed)
}

// Add makes the patients members that count from now on, without end, and returns how many did not before.
// directory.ErrNoGroup when there is no group.
func (g *Groups) Add(ctx context.Context, groupID string, patients Patients) (added int64, err error) {
	return g.edit(ctx, groupID, patients, lockGroup(ctx, groupID), insertNamed)
}

// Remove makes the group forget the patients and returns how many of them it knew. directory.ErrNoGroup when there is
// no group.
func (g *Groups) Remove(ctx context.Context, groupID string, patients Patients) (removed int64, err error) {
	return g.edit(ctx, groupID, patients, lockGroup(ctx, groupID), `WITH gone AS (
		DELETE FROM directory_member WHERE group_id = $1 AND patient IN (SELECT patient FROM directory_named)
		RETURNING patient) SELECT count(DISTINCT patient) FROM gone WHERE $2::timestamptz IS NOT NULL`)
}

// insertNamed adds who does not count at the instant $2 already, whatever else the group knows of them.
const insertNamed = `WITH added AS (
	INSERT INTO directory_member (group_id, patient, joined)
	SELECT $1, n.patient, coalesce(
		(SELECT min(m.joined) FROM directory_member AS m WHERE m.group_id = $1 AND m.patient = n.patient), clock_timestamp())
	FROM (SELECT DISTINCT patient FROM directory_named ORDER BY patient) AS n
	WHERE NOT EXISTS (SELECT FROM directory_member AS m WHERE m.group_id = $1 AND m.patient = n.patient
		AND NOT m.inactive AND m.starts <= $2 AND m.ends = 'infinity')
	ON CONFLICT DO NOTHING RETURNING 1)
	SELECT count(*) FROM added`

// edit runs one statement on a group, whose row open locks, with the patients in the table directory_named.
func (g *Groups) edit(
	ctx context.Context, groupID string, patients Patients, open func(pgx.Tx) error, statement string,
) (changed int64, err error) {
	if !fhir.IsID(groupID) {
		return 0, errors.New("the group's id is not a FHIR id")
	}
	var refused error
	err = pgx.BeginFunc(ctx, g.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE directory_named (patient text COLLATE "C" NOT NULL) ON COMMIT DROP`)
		if err != nil {
			return err
		}
		next, stop := iter.Pull2(patients)
		defer stop()
		n := 0
		// They may come from a terminal: nobody waits for them but the connection.
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"directory_named"}, []string{"patient"},
			pgx.CopyFromFunc(func() ([]any, error) {
				patient, err, more := next()
				if n++; more && err == nil && !fhir.IsID(patient) {
					err = fmt.Errorf("patient number %d is not a FHIR id", n)
				}
				if !more || err != nil {
					refused = err
					return nil, err
				}
				return []any{patient}, nil
			}))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "ANALYZE directory_named"); err != nil {
			return err
		}
		if err := open(tx); err != nil {
			return err
		}
		return tx.QueryRow(ctx, statement, groupID, g.now()).Scan(&changed)
	})
	if refused != nil {
		return 0, refused
	}
	if errors.Is(err, ErrGroupExists) || errors.Is(err, directory.ErrNoGroup) {
		return 0, err
	}
	return changed, wrap("change the group "+groupID, err)
}

func lockGroup(ctx context.Context, groupID string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		var id string
		err := tx.QueryRow(ctx, "SELECT id FROM directory_group WHERE id = $1 FOR UPDATE", groupID).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return directory.ErrNoGroup
		}
		return err
	}
}

// Delete removes a group and all that it knows. directory.ErrNoGroup when there is none.
func (g *Groups) Delete(ctx context.Context, groupID string) error {
	if !fhir.IsID(groupID) {
		return directory.ErrNoGroup
	}
	err := pgx.BeginFunc(ctx, g.pool, func(tx pgx.Tx) error {
		gone, err := tx.Exec(ctx, "DELETE FROM directory_group WHERE id = $1", groupID)
		if err == nil && gone.RowsAffected() == 0 {
			err = directory.ErrNoGroup
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "DELETE FROM directory_member WHERE group_id = $1", groupID)
		return err
	})
	if errors.Is(err, directory.ErrNoGroup) {
		return err
	}
	return wrap("delete the group "+groupID, err)
}
