package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// updated is when a version was updated, as the index of changes has it: what has no date is in every window (P-12).
const updated = "coalesce(r.last_updated, 'infinity')"

// newest selects the newest load sealed at or before the argument, 0 for none.
func newest(arg int) string {
	return fmt.Sprintf("(SELECT coalesce(max(no), 0) FROM load_batch WHERE sealed_at <= $%d)", arg)
}

// filter returns a condition on a version r to be in the window, for a query by another index, and the arguments with its
// own.
func filter(w source.Window, args []any) (string, []any) {
	switch {
	case !w.After.IsZero():
		return " AND r.born + 0 > " + newest(len(args)+1), append(args, w.After)
	case !w.Since.IsZero():
		return fmt.Sprintf(" AND %s > $%d", updated, len(args)+1), append(args, w.Since)
	}
	return "", args
}

// walk returns what follows the columns in a query of the versions r in the window, by the index of changes: load by load,
// the patients from the first to the last, "" for no bound. below compares with the last. The operators of patients are
// those of this index alone, so that the planner takes no other. Versions that ended are among them.
func walk(typ string, asOf time.Time, w source.Window, first, below, last string) (string, []any) {
	args := []any{instant(asOf)}
	condition := func(text string, value any) string {
		args = append(args, value)
		return fmt.Sprintf(" AND "+text, len(args))
	}
	rows, loads := "r.born = b.no", "b.sealed_at <= $1"
	if first != "" {
		rows += condition("r.patient ~>=~ $%d", first)
	}
	if last != "" {
		rows += condition("r.patient ~"+below+"~ $%d", last)
	}
	if !w.Since.IsZero() {
		rows += condition(updated+" > $%d", w.Since)
	}
	if !w.After.IsZero() {
		args = append(args, w.After)
		loads += " AND b.no > " + newest(len(args))
	}
	// OFFSET 0 keeps the loop over the loads outside.
	return " FROM load_batch AS b CROSS JOIN LATERAL (SELECT * FROM " + leaf(typ) + " AS r WHERE " + rows +
		" OFFSET 0) AS r WHERE " + loads, args
}

// NewPatients implements source.Source. A patient is not new if one of its versions was visible as of after: the current
// one, or one in tombstone. Where these were deleted it returns more.
func (s *Source) NewPatients(ctx context.Context, after, asOf time.Time, yield func(id string) error) error {
	from, args := walk("Patient", asOf, source.Window{After: after}, "", "", "")
	args = append(args, after)
	then := newest(len(args))
	text := "SELECT r.head, ''" + from + " AND " + notEnded + ` AND NOT EXISTS (
		SELECT FROM tombstone AS t WHERE t.type = 'Patient' AND t.id = r.id AND t.born > ` + then + " AND t.began <= " + then +
		") ORDER BY r.id"
	return s.patients(ctx, instant(asOf), text, args, yield)
}

// Deleted implements source.Source. It reads the records of tombstone: one for each version that a load deleted or replaced
// by one about others. Of several with the same patients it returns the newest.
func (s *Source) Deleted(ctx context.Context, q source.DeletedQuery, yield func(source.Deletion) error) error {
	if !fhir.IsStored(q.Type) {
		return errNoType(q.Type)
	}
	start := q.After
	if start.IsZero() {
		start = q.Since
	}
	at := instant(q.AsOf)
	args := []any{at, start}
	limited := func(condition string, value any) string {
		args = append(args, value)
		return fmt.Sprintf(" AND "+condition, len(args))
	}
	selected := func(condition string) string {
		return `SELECT t.id, t.patient, t.others, b.sealed_at, n.patient, n.others FROM tombstone AS t
			JOIN load_batch AS b ON b.no = t.born
			LEFT JOIN LATERAL (SELECT * FROM ` + leaf(q.Type) + " AS r WHERE r.id = t.id AND " + visible + ` OFFSET 0) AS n ON true
			WHERE t.type = '` + q.Type + "' AND t.born > " + newest(2) + " AND t.born <= " + newest(1) + condition + `
			AND (n.patient IS NULL OR (n.patient, n.others) IS DISTINCT FROM (t.patient, t.others)) AND NOT EXISTS (
				SELECT FROM tombstone AS u WHERE u.type = t.type AND u.id = t.id AND u.born > t.born AND u.born <= ` + newest(1) + `
				AND (u.patient, u.others) IS NOT DISTINCT FROM (t.patient, t.others))`
	}
	var texts []string
	switch {
	case q.Patients != nil && len(q.Patients) == 0:
		return nil
	case q.Patients != nil:
		args = append(args, q.Patients)
		texts = []string{
			selected(" AND t.patient = ANY" + array(3)),
			selected(" AND t.others IS NOT NULL AND t.others && " + array(3) + " AND t.patient <> ALL" + array(3)),
		}
	default:
		condition := ""
		if q.From != "" {
			condition = limited("t.patient >= $%d", q.From)
		}
		if q.To != "" {
			condition += limited("t.patient < $%d", q.To)
		}
		texts = []string{selected(condition)}
	}
	// Mostly there are none. To plan the queries of them takes longer than this.
	recorded := false
	first := query{
		"SELECT FROM tombstone WHERE type = '" + q.Type + "' AND born > " + newest(2) + " AND born <= " + newest(1) + " LIMIT 1",
		[]any{at, start}, func([][]byte) error { return nil }, func() error { recorded = true; return nil },
	}
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		if err := read(ctx, conn, q.Type, at, first); err != nil || !recorded {
			return err
		}
		row := deletion{types: conn.Conn().TypeMap()}
		var queries []query
		for _, text := range texts {
			queries = append(queries, query{text, args, row.read, func() error { return yield(row.Deletion) }})
		}
		return read(ctx, conn, q.Type, at, queries...)
	})
}

// deletion decodes rows into one Deletion, which it reuses.
type deletion struct {
	source.Deletion
	types *pgtype.Map
}

func (d *deletion) read(values [][]byte) (err error) {
	d.ID = string(values[0])
	if d.Before, err = readSubjects(d.types, d.Before, values[1], values[2]); err != nil {
		return err
	}
	if err := d.types.Scan(pgtype.TimestamptzOID, pgx.BinaryFormatCode, values[3], &d.At); err != nil {
		return fmt.Errorf("read when a resource was deleted: %w", err)
	}
	d.Held = values[4] != nil
	d.Now, err = readSubjects(d.types, d.Now, values[4], values[5])
	return err
}
