package pgdir

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// Access implements directory.Access on a database, and the changes by operators. Methods may be called concurrently.
// Changes are atomic.
type Access struct{ pool *pgxpool.Pool }

var _ directory.Access = (*Access)(nil)

// NewAccess returns the grants of the pool's database.
func NewAccess(pool *pgxpool.Pool) *Access { return &Access{pool: pool} }

// ErrNoGrant means that the owner has no entry.
var ErrNoGrant = errors.New("no such grant")

// Check returns an error unless the database is reachable and has the schema that this program needs.
func (a *Access) Check(ctx context.Context) error { return pgdb.Check(ctx, a.pool) }

// Grant implements directory.Access.
func (a *Access) Grant(ctx context.Context, owner export.Owner) (directory.Grant, error) {
	entry, err := a.Entry(ctx, owner)
	if errors.Is(err, ErrNoGrant) {
		return directory.Grant{}, nil
	}
	if err != nil {
		return directory.Grant{}, err
	}
	return entry.Grant(), nil
}

// Entry returns the owner's entry, or ErrNoGrant.
func (a *Access) Entry(ctx context.Context, owner export.Owner) (directory.GrantEntry, error) {
	if err := ctx.Err(); err != nil {
		return directory.GrantEntry{}, err
	}
	// The server refuses such names, so no entry can have them.
	if !directory.IsStorable(owner.Issuer) || !directory.IsStorable(owner.Subject) {
		return directory.GrantEntry{}, ErrNoGrant
	}
	entry := directory.GrantEntry{Owner: owner}
	var kinds [3]string
	err := a.pool.QueryRow(ctx, `SELECT types, type_names, groups, group_names, patients, patient_names
		FROM directory_grant WHERE issuer = $1 AND subject = $2`, owner.Issuer, owner.Subject).
		Scan(&kinds[0], &entry.Types.Names, &kinds[1], &entry.Groups.Names, &kinds[2], &entry.Patients.Names)
	if errors.Is(err, pgx.ErrNoRows) {
		return directory.GrantEntry{}, ErrNoGrant
	}
	act := "read the grant of owner " + owner.Hash()
	if err != nil {
		return directory.GrantEntry{}, wrap(act, err)
	}
	for i, list := range []*directory.NameList{&entry.Types, &entry.Groups, &entry.Patients} {
		if list.All, err = all(kinds[i], len(list.Names)); err != nil {
			return directory.GrantEntry{}, fmt.Errorf("%s: %w", act, err)
		}
	}
	if err := entry.Validate(); err != nil {
		return directory.GrantEntry{}, fmt.Errorf("%s: %w", act, err)
	}
	return entry, nil
}

// Kinds of lists.
const (
	kindAll    = "all"
	kindOnly   = "only"
	kindExcept = "except"
)

// all reports whether a list of the kind selects every name except its own.
func all(kind string, names int) (bool, error) {
	switch {
	case kind == kindAll && names == 0 || kind == kindExcept:
		return true, nil
	case kind == kindOnly:
		return false, nil
	}
	return false, errors.New("unknown kind of list")
}

// Kind returns all, only or except.
func Kind(list directory.NameList) string {
	switch {
	case !list.All:
		return kindOnly
	case len(list.Names) > 0:
		return kindExcept
	}
	return kindAll
}

// Summary is an entry without its names.
type Summary struct {
	Owner                   export.Owner
	Types, Groups, Patients Count
}

// Count is a list without its names.
type Count struct {
	Kind  string // all, only or except
	Names int
}

// List returns all entries, sorted by issuer and subject.
func (a *Access) List(ctx context.Context) ([]Summary, error) {
	rows, _ := a.pool.Query(ctx, `SELECT issuer, subject, types, cardinality(type_names), groups, cardinality(group_names),
		patients, cardinality(patient_names) FROM directory_grant ORDER BY issuer, subject`) // rows returns the error
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Summary, err error) {
		err = row.Scan(&s.Owner.Issuer, &s.Owner.Subject, &s.Types.Kind, &s.Types.Names, &s.Groups.Kind, &s.Groups.Names,
			&s.Patients.Kind, &s.Patients.Names)
		return s, err
	})
	return list, wrap("list grants", err)
}

// Set creates or replaces the owner's entry.
func (a *Access) Set(ctx context.Context, entry directory.GrantEntry) error {
	if err := entry.Validate(); err != nil {
		return err
	}
	_, err := a.pool.Exec(ctx, insertGrant+` ON CONFLICT (issuer, subject) DO UPDATE SET
		types = excluded.types, type_names = excluded.type_names, groups = excluded.groups,
		group_names = excluded.group_names, patients = excluded.patients, patient_names = excluded.patient_names`,
		row(entry)...)
	return wrap("set the grant of owner "+entry.Owner.Hash(), err)
}

const insertGrant = `INSERT INTO directory_grant
	(issuer, subject, types, type_names, groups, group_names, patients, patient_names)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`

func row(e directory.GrantEntry) []any {
	names := func(list directory.NameList) []string { return append([]string{}, list.Names...) } // nil would be NULL
	return []any{
		e.Owner.Issuer, e.Owner.Subject, Kind(e.Types), names(e.Types), Kind(e.Groups), names(e.Groups),
		Kind(e.Patients), names(e.Patients),
	}
}

// Remove deletes the owner's entry. It returns ErrNoGrant when there is none.
func (a *Access) Remove(ctx context.Context, owner export.Owner) error {
	if !directory.IsStorable(owner.Issuer) || !directory.IsStorable(owner.Subject) {
		return ErrNoGrant
	}
	done, err := a.pool.Exec(ctx, "DELETE FROM directory_grant WHERE issuer = $1 AND subject = $2",
		owner.Issuer, owner.Subject)
	if err != nil {
		return wrap("remove the grant of owner "+owner.Hash(), err)
	}
	if done.RowsAffected() == 0 {
		return ErrNoGrant
	}
	return nil
}

// Replace replaces all entries, atomically.
func (a *Access) Replace(ctx context.Context, entries []directory.GrantEntry) error {
	for i, entry := range entries {
		if err := entry.Validate(); err != nil {
			return fmt.Errorf("entry number %d: %w", i+1, err)
		}
	}
	return wrap("replace the grants", pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		// Serialize concurrent calls, so that the result has the entries of one call, not of both.
		if _, err := tx.Exec(ctx, "LOCK TABLE directory_grant IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM directory_grant"); err != nil {
			return err
		}
		for _, entry := range entries {
			if _, err := tx.Exec(ctx, insertGrant, row(entry)...); err != nil {
				return err
			}
		}
		return nil
	}))
}
