package pgdir

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// ErrGroupExists means that a group with the id exists, exportable or not.
var ErrGroupExists = errors.New("the group exists")

// Group is a group in the view of operators. sluice admin prints Group and Member as JSON with --json.
type Group struct {
	ID          string                 `json:"id"`
	Exportable  bool                   `json:"exportable"`
	LastUpdated *time.Time             `json:"lastUpdated,omitempty"` // meta.lastUpdated of the loaded resource, if any
	Name        *string                `json:"name,omitempty"`
	Identifiers []directory.Identifier `json:"identifiers,omitempty"`
	Members     int64                  `json:"allMembers"` // patients, including inactive ones and those outside their period
	Current     int64                  `json:"members"`    // patients that are members now

	// Only in the result of Show:
	Groups  []MemberGroup    `json:"groups,omitempty"`
	LeftOut []export.LeftOut `json:"leftOut,omitempty"` // members now that are no patient of this server
}

// MemberGroup is a group in a group.
type MemberGroup struct {
	ID         string `json:"id"`
	Exportable bool   `json:"exportable"` // whether the group exists and can be exported
	Current    bool   `json:"member"`     // whether it is a member now
}

// Member is a patient in a group.
type Member struct {
	Patient string    `json:"patient"`
	Joined  time.Time `json:"joined"` // when the patient joined the group
	Current bool      `json:"member"` // whether the patient is a member now
}

const selectGroups = `SELECT g.id, g.exportable, g.last_updated, g.name, g.identifiers, count(DISTINCT m.patient),
	count(DISTINCT m.patient) FILTER (WHERE NOT m.inactive AND m.starts <= $1 AND m.ends > $1)
	FROM directory_group AS g LEFT JOIN directory_member AS m ON m.group_id = g.id `

func scanGroup(row pgx.CollectableRow) (g Group, err error) {
	err = row.Scan(&g.ID, &g.Exportable, &g.LastUpdated, &g.Name, &g.Identifiers, &g.Members, &g.Current)
	return g, err
}

// List returns every group, sorted by id, including those that cannot be exported.
func (g *Groups) List(ctx context.Context) ([]Group, error) {
	rows, _ := g.pool.Query(ctx, selectGroups+"GROUP BY g.id ORDER BY g.id", g.now()) // rows returns the error
	list, err := pgx.CollectRows(rows, scanGroup)
	return list, wrap("list groups", err)
}

// Show returns a group, even one that cannot be exported. It returns directory.ErrNoGroup when it does not exist.
func (g *Groups) Show(ctx context.Context, groupID string) (Group, error) {
	if !fhir.IsID(groupID) {
		return Group{}, directory.ErrNoGroup
	}
	rows, _ := g.pool.Query(ctx, selectGroups+"WHERE g.id = $2 GROUP BY g.id", g.now(), groupID) // rows returns the error
	group, err := pgx.CollectExactlyOneRow(rows, scanGroup)
	if errors.Is(err, pgx.ErrNoRows) {
		err = directory.ErrNoGroup
	}
	if err == nil {
		rows, _ := g.pool.Query(ctx, `SELECT s.member, coalesce(bool_or(g.exportable), false), bool_or(`+active+`)
			FROM directory_subgroup AS s LEFT JOIN directory_group AS g ON g.id = s.member
			WHERE s.group_id = $1 GROUP BY s.member ORDER BY s.member`, groupID, g.now()) // rows returns the error
		group.Groups, err = pgx.CollectRows(rows, pgx.RowToStructByPos[MemberGroup])
	}
	if err == nil {
		rows, _ := g.pool.Query(ctx, `SELECT '', reason, sum(members)::bigint FROM directory_left_out
			WHERE group_id = $1 AND `+active+` GROUP BY reason ORDER BY reason`, groupID, g.now()) // rows returns the error
		group.LeftOut, err = pgx.CollectRows(rows, pgx.RowToStructByPos[export.LeftOut])
	}
	return group, wrap("read the group "+groupID, err)
}

// Roll streams all patients of a group, including those who are not members now, each once, sorted by id. It yields
// nothing for an unknown group.
func (g *Groups) Roll(ctx context.Context, groupID string, yield func(Member) error) error {
	rows, _ := g.pool.Query(ctx, `SELECT patient, min(joined), bool_or(NOT inactive AND starts <= $2 AND ends > $2)
		FROM directory_member WHERE group_id = $1 GROUP BY patient ORDER BY patient`, groupID, g.now()) // rows returns the error
	var member Member
	var refused error // of yield, returned unchanged
	_, err := pgx.ForEachRow(rows, []any{&member.Patient, &member.Joined, &member.Current}, func() error {
		refused = yield(member)
		return refused
	})
	if refused != nil {
		return refused
	}
	return wrap("read the members of group "+groupID, err)
}

// Patients is a stream of patient ids. Its first error ends the operation and is returned.
type Patients = iter.Seq2[string, error]

// Create creates a group of the patients and returns their number. It returns ErrGroupExists when the group exists.
func (g *Groups) Create(ctx context.Context, groupID string, patients Patients) (members int64, err error) {
	return g.edit(ctx, groupID, patients, g.check, func(tx pgx.Tx) error {
		made, err := tx.Exec(ctx,
			"INSERT INTO directory_group (id, exportable) VALUES ($1, true) ON CONFLICT DO NOTHING", groupID)
		if err == nil && made.RowsAffected() == 0 {
			err = ErrGroupExists
		}
		return err
	}, insertNamed("NULL"))
}

// Add makes the patients members from now on, without end, and returns how many were not members before. It
// returns directory.ErrNoGroup when the group does not exist.
func (g *Groups) Add(ctx context.Context, groupID string, patients Patients) (added int64, err error) {
	return g.edit(ctx, groupID, patients, g.check, lockGroup(ctx, groupID), insertNamed(`coalesce(
		(SELECT min(greatest(m.active_since, m.starts)) FROM directory_member AS m WHERE m.group_id = $1 AND m.patient = n.patient
			AND NOT m.inactive AND m.starts <= $2 AND m.ends > $2), clock_timestamp())`))
}

// Remove deletes the patients from the group and returns how many were in it. It returns
// directory.ErrNoGroup when the group does not exist.
func (g *Groups) Remove(ctx context.Context, groupID string, patients Patients) (removed int64, err error) {
	return g.edit(ctx, groupID, patients, nil, lockGroup(ctx, groupID), `WITH gone AS (
		DELETE FROM directory_member WHERE group_id = $1 AND patient IN (SELECT patient FROM directory_named)
		RETURNING patient) SELECT count(DISTINCT patient) FROM gone WHERE $2::timestamptz IS NOT NULL`)
}

// insertNamed adds the patients n who are not members without end at the instant $2, with the value of active_since.
func insertNamed(activeSince string) string {
	return `WITH added AS (
		INSERT INTO directory_member (group_id, patient, joined, active_since)
		SELECT $1, n.patient, coalesce(
			(SELECT min(m.joined) FROM directory_member AS m WHERE m.group_id = $1 AND m.patient = n.patient),
			clock_timestamp()), ` + activeSince + `
		FROM (SELECT DISTINCT patient FROM directory_named ORDER BY patient) AS n
		WHERE NOT EXISTS (SELECT FROM directory_member AS m WHERE m.group_id = $1 AND m.patient = n.patient
			AND NOT m.inactive AND m.starts <= $2 AND m.ends = 'infinity')
		ON CONFLICT DO NOTHING RETURNING 1)
		SELECT count(*) FROM added`
}

// edit runs a statement on a group, with the patients in the table directory_named. open creates or locks the group.
func (g *Groups) edit(
	ctx context.Context, groupID string, patients Patients, check func(Missing) error, open func(pgx.Tx) error,
	statement string,
) (changed int64, err error) {
	if !fhir.IsID(groupID) {
		return 0, errors.New("the group's id is not a FHIR id")
	}
	var refused error
	err = pgx.BeginFunc(ctx, g.pool, func(tx pgx.Tx) (err error) {
		// Patients may come from a terminal: read them before the group is locked.
		if refused, err = stageNamed(ctx, tx, patients); err != nil {
			return err
		}
		if err := checkNamed(ctx, tx, check, nil); err != nil {
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
	return changed, wrap("change the group "+groupID, err)
}

// stageNamed copies the patients into the temporary table directory_named of the transaction. refused is the stream's
// error or that of a malformed id; err is not nil then.
func stageNamed(ctx context.Context, tx pgx.Tx, patients Patients) (refused, err error) {
	_, err = tx.Exec(ctx, `CREATE TEMPORARY TABLE directory_named (patient text COLLATE "C" NOT NULL) ON COMMIT DROP`)
	if err != nil {
		return nil, err
	}
	next, stop := iter.Pull2(patients)
	defer stop()
	n := 0
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
	if err == nil {
		_, err = tx.Exec(ctx, "ANALYZE directory_named")
	}
	return refused, err
}

// lockGroup locks the group that changes. Its Group.quantity is no longer right.
func lockGroup(ctx context.Context, groupID string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		var id string
		err := tx.QueryRow(ctx, "UPDATE directory_group SET quantity = NULL WHERE id = $1 RETURNING id", groupID).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return directory.ErrNoGroup
		}
		return err
	}
}

// Delete deletes a group and its members. It returns directory.ErrNoGroup when it does not exist.
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
	return wrap("delete the group "+groupID, err)
}
