package pgdir

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// Access implements directory.Access on a database, and the changes by operators. Methods may be called concurrently.
// Changes are atomic.
type Access struct {
	pool  *pgxpool.Pool
	check func(Missing) error // may be nil
}

var _ directory.Access = (*Access)(nil)

// NewAccess returns the grants of the pool's database.
func NewAccess(pool *pgxpool.Pool) *Access { return &Access{pool: pool} }

// ErrNoGrant means that the owner has no entry.
var ErrNoGrant = errors.New("no such grant")

// Check returns an error unless the database is reachable and has the schema that this program needs.
func (a *Access) Check(ctx context.Context) error { return pgdb.Check(ctx, a.pool) }

// Grant implements directory.Access.
func (a *Access) Grant(ctx context.Context, owner export.Owner) (directory.Grant, error) {
	if err := ctx.Err(); err != nil {
		return directory.Grant{}, err
	}
	if !storable(owner) {
		return directory.Grant{}, nil
	}
	const few = 16 << 10 // bytes of a short list, as stored; to compare them the server does not read the list
	var read header
	var patients *[]string
	err := a.pool.QueryRow(ctx, "SELECT "+headerColumns+`, CASE WHEN pg_column_size(patient_names) <= $3 THEN patient_names END
		FROM directory_grant WHERE issuer = $1 AND subject = $2`,
		owner.Issuer, owner.Subject, few).Scan(append(read.columns(), &patients)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return directory.Grant{}, nil
	}
	act := "read the grant of owner " + owner.Hash()
	if err != nil {
		return directory.Grant{}, wrap(act, err)
	}
	entry, err := read.entry(owner)
	if err != nil {
		return directory.Grant{}, fmt.Errorf("%s: %w", act, err)
	}
	grant := entry.Grant()
	if patients != nil {
		entry.Patients.Names = *patients
		if _, err := all(read.patients, len(*patients)); err != nil {
			return directory.Grant{}, fmt.Errorf("%s: %w", act, err)
		}
		if err := entry.Validate(); err != nil {
			return directory.Grant{}, fmt.Errorf("%s: %w", act, err)
		}
		selected := entry.Patients.Selection()
		grant.Few = &selected
	}
	return grant, nil
}

// Patients implements directory.Access. It holds a connection of the pool until use returns.
func (a *Access) Patients(
	ctx context.Context, owner export.Owner, use func(directory.Grant, *directory.PatientFilter) error,
) error {
	err := a.Entry(ctx, owner, func(entry directory.GrantEntry, _ int, next func() (string, error)) error {
		patients := directory.NewPatientFilter(entry.Patients.All, next)
		if err := use(entry.Grant(), patients); err != nil {
			return usedError{err}
		}
		return patients.Finish()
	})
	if errors.Is(err, ErrNoGrant) {
		return use(directory.Grant{}, directory.NameList{}.Filter())
	}
	var used usedError
	if errors.As(err, &used) {
		return used.error
	}
	return err
}

// usedError is an error of the caller's function, to be returned unchanged.
type usedError struct{ error }

// Entry calls use once with the owner's entry without its patients, the length of the list of patients, and a function
// that returns the listed ids, in ascending order, each once, and then io.EOF. It is one consistent read, and holds one
// id. It returns ErrNoGrant without a call for an owner without an entry.
func (a *Access) Entry(
	ctx context.Context, owner export.Owner,
	use func(entry directory.GrantEntry, patients int, next func() (string, error)) error,
) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !storable(owner) {
		return ErrNoGrant
	}
	act := "read the grant of owner " + owner.Hash()
	// One statement, so that all of it is of one snapshot. The first row has everything but the patients.
	rows, err := a.pool.Query(ctx, `WITH g AS MATERIALIZED (SELECT * FROM directory_grant WHERE issuer = $1 AND subject = $2)
		SELECT `+headerColumns+`, cardinality(patient_names), NULL::text FROM g
		UNION ALL (SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, n
			FROM g CROSS JOIN unnest(g.patient_names) AS n ORDER BY n COLLATE "C" NULLS FIRST)`, owner.Issuer, owner.Subject)
	if err != nil {
		return wrap(act, err)
	}
	defer rows.Close()
	var read header
	var patients int
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return wrap(act, err)
		}
		return ErrNoGrant
	}
	if err := rows.Scan(append(read.columns(), &patients, nil)...); err != nil {
		return wrap(act, err)
	}
	entry, err := read.entry(owner)
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	var last, id string
	err = use(entry, patients, func() (string, error) {
		for rows.Next() {
			// An error of Scan may quote the row.
			if rows.Scan(nil, nil, nil, nil, nil, nil, nil, &id) != nil || read.patients == kindAll || !fhir.IsID(id) {
				return "", fmt.Errorf("%s: the list of patients is not valid", act)
			}
			if id != last {
				last = id
				return id, nil
			}
		}
		if err := rows.Err(); err != nil {
			return "", wrap(act, err)
		}
		return "", io.EOF
	})
	return err
}

// storable reports whether the server accepts the owner's names. No entry can have others.
func storable(owner export.Owner) bool {
	return directory.IsStorable(owner.Issuer) && directory.IsStorable(owner.Subject)
}

// header is a row of directory_grant without the names of patients.
type header struct {
	types, groups, patients string // kinds
	typeNames, groupNames   []string
	levels                  *[]string
}

const headerColumns = "types, type_names, groups, group_names, levels, patients"

func (h *header) columns() []any {
	return []any{&h.types, &h.typeNames, &h.groups, &h.groupNames, &h.levels, &h.patients}
}

// entry returns the entry without the names of patients, or an error for a row that is not valid.
func (h *header) entry(owner export.Owner) (directory.GrantEntry, error) {
	entry := directory.GrantEntry{Owner: owner}
	entry.Types.Names, entry.Groups.Names = h.typeNames, h.groupNames
	for _, list := range []struct {
		kind  string
		names int
		to    *bool
	}{
		{h.types, len(h.typeNames), &entry.Types.All}, {h.groups, len(h.groupNames), &entry.Groups.All},
		{h.patients, 0, &entry.Patients.All},
	} {
		var err error
		if *list.to, err = all(list.kind, list.names); err != nil {
			return directory.GrantEntry{}, err
		}
	}
	var err error
	if entry.Levels, err = levelsOf(h.levels); err != nil {
		return directory.GrantEntry{}, err
	}
	return entry, entry.Validate()
}

// levelsOf returns the levels of a stored entry. Entries of the previous release have none.
func levelsOf(names *[]string) (directory.Levels, error) {
	if names == nil {
		return nil, nil
	}
	return directory.ParseLevels(*names)
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

// Kind returns all, only or except, for a list of as many names.
func Kind(allBut bool, names int) string {
	switch {
	case !allBut:
		return kindOnly
	case names > 0:
		return kindExcept
	}
	return kindAll
}

// Summary is an entry without its names.
type Summary struct {
	Owner                   export.Owner
	Types, Groups, Patients Count
	Levels                  directory.Levels
}

// Count is a list without its names.
type Count struct {
	Kind  string // all, only or except
	Names int
}

// List returns all entries, sorted by issuer and subject.
func (a *Access) List(ctx context.Context) ([]Summary, error) {
	rows, _ := a.pool.Query(ctx, `SELECT issuer, subject, types, cardinality(type_names), groups, cardinality(group_names),
		patients, cardinality(patient_names), levels FROM directory_grant ORDER BY issuer, subject`) // rows returns the error
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Summary, err error) {
		var levels *[]string
		err = row.Scan(&s.Owner.Issuer, &s.Owner.Subject, &s.Types.Kind, &s.Types.Names, &s.Groups.Kind, &s.Groups.Names,
			&s.Patients.Kind, &s.Patients.Names, &levels)
		if err == nil {
			s.Levels, err = levelsOf(levels)
		}
		return s, err
	})
	return list, wrap("list grants", err)
}

// Set creates or replaces the owner's entry. The names of its patients come from the stream, unless that is nil.
func (a *Access) Set(ctx context.Context, entry directory.GrantEntry, patients Patients) error {
	if err := entry.Validate(); err != nil {
		return err
	}
	kind := kindOnly
	switch {
	case entry.Patients.All && patients != nil:
		kind = kindExcept
	case entry.Patients.All:
		kind = Kind(true, len(entry.Patients.Names))
	}
	if patients == nil {
		patients = func(yield func(string, error) bool) {
			for _, id := range entry.Patients.Names {
				if !yield(id, nil) {
					return
				}
			}
		}
	}
	var refused error
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) (err error) {
		if refused, err = stageNamed(ctx, tx, patients); err != nil {
			return err
		}
		if err := checkNamed(ctx, tx, a.check, entry.Groups.Names); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, "INSERT INTO directory_grant ("+grantColumns+`)
			SELECT $1, $2, $3, $4, $5, $6, $7, $8, coalesce(n.names, '{}')
			FROM (SELECT array_agg(DISTINCT patient ORDER BY patient) AS names FROM directory_named) AS n
			WHERE $8 <> 'except' OR n.names IS NOT NULL
			ON CONFLICT (issuer, subject) DO UPDATE SET
				types = excluded.types, type_names = excluded.type_names, groups = excluded.groups,
				group_names = excluded.group_names, levels = excluded.levels,
				patients = excluded.patients, patient_names = excluded.patient_names`,
			append(row(entry)[:7], kind)...)
		if err == nil && done.RowsAffected() == 0 {
			refused = errNoExceptions
			return refused
		}
		return err
	})
	if refused != nil {
		return refused
	}
	return wrap("set the grant of owner "+entry.Owner.Hash(), err)
}

// errNoExceptions: an empty list of exceptions is probably a mistake, and would grant everything.
var errNoExceptions = errors.New("the list of excepted patients has no ids")

const grantColumns = "issuer, subject, types, type_names, groups, group_names, levels, patients, patient_names"

func row(e directory.GrantEntry) []any {
	values := []any{e.Owner.Issuer, e.Owner.Subject}
	add := func(list directory.NameList) {
		names := append([]string{}, list.Sorted().Names...) // nil would be NULL
		values = append(values, Kind(list.All, len(names)), names)
	}
	add(e.Types)
	add(e.Groups)
	values = append(values, e.Levels.Names())
	add(e.Patients)
	return values
}

// Remove deletes the owner's entry. It returns ErrNoGrant when there is none.
func (a *Access) Remove(ctx context.Context, owner export.Owner) error {
	if !storable(owner) {
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

// Changes are the numbers of entries that Replace changes. sluice admin prints them as JSON with --json.
type Changes struct {
	Removed int64 `json:"removed"`
	Added   int64 `json:"added"`
	Changed int64 `json:"changed"`
}

// Compare returns what Replace would change, and changes nothing.
func (a *Access) Compare(ctx context.Context, entries []directory.GrantEntry) (changes Changes, err error) {
	const set = "ARRAY(SELECT DISTINCT e COLLATE \"C\" FROM unnest(%s) AS e ORDER BY 1)" // of the names of a list
	same := func(table string) string {
		list := func(column string) string { return fmt.Sprintf(set, table+"."+column) }
		levels := fmt.Sprintf(set, "coalesce("+table+".levels, '{group}')")
		return fmt.Sprintf("(%[1]s.types, %[1]s.groups, %[1]s.patients, %[2]s, %[3]s, %[4]s, %[5]s)",
			table, list("type_names"), list("group_names"), list("patient_names"), levels)
	}
	err = a.stage(ctx, entries, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE n.issuer IS NULL), count(*) FILTER (WHERE o.issuer IS NULL),
				count(*) FILTER (WHERE o.issuer = n.issuer AND `+same("o")+" <> "+same("n")+`)
			FROM directory_grant AS o FULL JOIN directory_staged AS n USING (issuer, subject)`).
			Scan(&changes.Removed, &changes.Added, &changes.Changed)
	})
	return changes, wrap("compare the grants", err)
}

// Replace replaces all entries, atomically.
func (a *Access) Replace(ctx context.Context, entries []directory.GrantEntry) error {
	return wrap("replace the grants", a.stage(ctx, entries, func(tx pgx.Tx) error {
		// Serialize concurrent calls, so that the result has the entries of one call, not of both.
		_, err := tx.Exec(ctx, `LOCK TABLE directory_grant IN SHARE ROW EXCLUSIVE MODE; DELETE FROM directory_grant;
			INSERT INTO directory_grant (`+grantColumns+") SELECT "+grantColumns+" FROM directory_staged")
		return err
	}))
}

// stage runs work in a transaction with the entries in the temporary table directory_staged.
func (a *Access) stage(ctx context.Context, entries []directory.GrantEntry, work func(pgx.Tx) error) error {
	var groups []string
	for i, entry := range entries {
		if err := entry.Validate(); err != nil {
			return fmt.Errorf("entry number %d: %w", i+1, err)
		}
		groups = append(groups, entry.Groups.Names...)
	}
	return pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE directory_staged (LIKE directory_grant INCLUDING INDEXES) ON COMMIT DROP;
			CREATE TEMPORARY TABLE directory_named (patient text COLLATE "C" NOT NULL) ON COMMIT DROP`)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			_, err := tx.Exec(ctx, "INSERT INTO directory_staged ("+grantColumns+`)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, row(entry)...)
			if err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, "INSERT INTO directory_named SELECT unnest(patient_names) FROM directory_staged")
		if err != nil {
			return err
		}
		if err := checkNamed(ctx, tx, a.check, groups); err != nil {
			return err
		}
		return work(tx)
	})
}
