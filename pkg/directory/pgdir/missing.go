package pgdir

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Missing counts the named patients and groups that the database does not have. They are probably mistyped.
type Missing struct {
	Patients, OfPatients int64
	Groups, OfGroups     int64
	Unchecked            bool // the patients: the session may not read the clinical data
}

// Checked returns g with a check of the patients of Create and Add. It is called before anything changes, and its error
// ends the operation and is returned unchanged.
func (g *Groups) Checked(by func(Missing) error) *Groups {
	return &Groups{pool: g.pool, now: g.now, check: by}
}

// Checked returns a with a check of the patients and groups of Set, Replace and Compare, as for Groups.
func (a *Access) Checked(by func(Missing) error) *Access { return &Access{pool: a.pool, check: by} }

// mayReadPatients is whether the session may read the clinical data.
const mayReadPatients = "has_table_privilege('resource', 'SELECT') AND has_table_privilege('load_batch', 'SELECT')"

// checkedError is an error of a check, to be returned unchanged.
type checkedError struct{ error }

// checkNamed calls the check, if there is one, with the patients in the table directory_named and the groups.
func checkNamed(ctx context.Context, tx pgx.Tx, check func(Missing) error, groups []string) error {
	if check == nil {
		return nil
	}
	var missing Missing
	var mayRead bool
	err := tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE NOT EXISTS (SELECT FROM directory_group AS g WHERE g.id = n)),
			count(*), `+mayReadPatients+`
		FROM (SELECT DISTINCT n FROM unnest($1::text[]) AS n) AS named`, groups).
		Scan(&missing.Groups, &missing.OfGroups, &mayRead)
	if err != nil {
		return err
	}
	if missing.Unchecked = !mayRead; mayRead {
		// For many patients, reading the whole table once is faster than the index.
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = on"); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `WITH sealed AS (SELECT max(no) AS no FROM load_batch WHERE sealed_at IS NOT NULL)
			SELECT count(*) FILTER (WHERE r.id IS NULL), count(*)
			FROM (SELECT DISTINCT patient FROM directory_named) AS n
			LEFT JOIN (SELECT id FROM resource, sealed WHERE type = 'Patient' AND born <= no AND (ended IS NULL OR ended > no))
				AS r ON r.id = n.patient`).
			Scan(&missing.Patients, &missing.OfPatients)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
			return err
		}
	}
	if err := check(missing); err != nil {
		return checkedError{err}
	}
	return nil
}
