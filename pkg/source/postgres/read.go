package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// columns returns the columns of a row, in the order of row.read. The patients of a Provenance are not in its head: they
// change while its text stays.
func columns(typ string) string {
	if typ == "Provenance" {
		return "r.head, r.body, r.patient, r.others"
	}
	return "r.head, r.body"
}

// visible is the condition for a version to be visible as of the instant $1. The newest load sealed by then is looked up
// once per query; if there is none, no version is visible. The sum keeps the planner from the indexes of born.
const visible = "r.born + 0 <= (SELECT max(no) FROM load_batch WHERE sealed_at <= $1) AND " + notEnded

const notEnded = "(r.ended IS NULL OR r.ended > (SELECT max(no) FROM load_batch WHERE sealed_at <= $1))"

// array is an argument of text[] whose values the planner does not see. It would estimate how many rows each of thousands
// of patients has, which takes longer than reading what changed.
func array(arg int) string { return fmt.Sprintf("((SELECT $%d::text[])::text[])", arg) }

// trimmed selects whether versions visible as of $1 may have been deleted. It runs after the rows were read, because trim
// publishes its horizon before it deletes.
const trimmed = `SELECT h.load > (SELECT max(no) FROM load_batch WHERE sealed_at <= $1) FROM trim_horizon AS h`

// ForPatients implements source.Source.
func (s *Source) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	if !fhir.InCompartment(q.Type) {
		return errNoType(q.Type)
	}
	// Drop malformed ids: in the tables the empty string means no patient.
	q.Patients = slices.DeleteFunc(slices.Clone(q.Patients), func(id string) bool { return !fhir.IsID(id) })
	if len(q.Patients) == 0 {
		return nil
	}
	types, err := s.recentSizes(ctx)
	if err != nil {
		return err
	}
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		by, err := s.choose(ctx, conn, q, types)
		if err != nil {
			return err
		}
		return forPatients(ctx, conn, q, by, yield)
	})
}

func forPatients(
	ctx context.Context, conn *pgxpool.Conn, q source.Query, by path, yield func(source.Resource) error,
) error {
	asked := func(patient string) bool { _, found := slices.BinarySearch(q.Patients, patient); return found }
	at, first, final := instant(q.AsOf), q.Patients[0], q.Patients[len(q.Patients)-1]
	selected := "SELECT " + columns(q.Type)
	args := []any{at, q.Patients}
	changed, args := filter(q.Window, args)
	of := " FROM " + leaf(q.Type) + " AS r WHERE r.patient "
	from, ofOne := of+"= ANY"+array(2)+" AND "+visible+changed, args
	several := "= ANY" + array(2)
	switch by {
	case byChange:
		from, ofOne = walk(q.Type, q.AsOf, q.Window, first, "<=", final)
		from += " AND " + notEnded
		q.Bound = nil // the rows are few, and not in the order of patients
	case byRange:
		several = "BETWEEN ($2::text[])[1] AND ($2::text[])[cardinality($2::text[])]"
		from, ofOne = filter(q.Window, []any{at, first, final})
		from = of + "BETWEEN $2 AND $3 AND " + visible + from
	}
	narrowing, err := worthwhile(ctx, conn, q.Narrowing, from, ofOne)
	if err != nil {
		return err
	}
	row := newRow(conn, q.Type)
	last, lastAsked := "", false // rows of one patient are adjacent
	one := row.narrow(narrowing, from, ofOne, asked, func() error {
		r := &row.resource
		if len(r.Subjects) == 0 {
			return errHead
		}
		if patient := r.Subjects[0]; patient != last {
			last, lastAsked = patient, asked(patient)
		}
		if !lastAsked {
			return nil
		}
		return yield(*r)
	})
	// Resources of several patients, by each patient except the smallest, each once. Few types have any.
	ofSeveral := selected + " FROM (SELECT DISTINCT id FROM additional_subject WHERE type = '" + q.Type +
		"' AND patient " + several + ") AS a JOIN " + leaf(q.Type) + " AS r ON r.id = a.id" +
		" WHERE (SELECT true FROM additional_subject WHERE type = '" + q.Type + "' LIMIT 1) AND " + visible + changed
	return read(ctx, conn, q.Type, at, one, query{ofSeveral, args, row.read, func() error {
		// The first query has yielded it if its smallest subject was requested.
		if slices.IndexFunc(row.resource.Subjects, asked) < 1 {
			return nil
		}
		return yield(row.resource)
	}})
}

// ByID implements source.Source.
func (s *Source) ByID(ctx context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	if !source.HasByID(q.Type) {
		return errNoType(q.Type)
	}
	if len(q.IDs) == 0 {
		return nil
	}
	at := instant(q.AsOf)
	text := "SELECT " + columns(q.Type) + " FROM " + leaf(q.Type) + " AS r WHERE r.id = ANY" + array(2) + " AND " + visible
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		row := newRow(conn, q.Type)
		return read(ctx, conn, q.Type, at, row.query(text, []any{at, q.IDs}, yield))
	})
}

// About implements source.Source. It reads the targets of a Provenance without a patient from its body, and yields it
// only when all of them are of referenced types: any other target may be about a patient that is unknown. The load has
// left out those with a target that the store does not hold.
func (s *Source) About(ctx context.Context, q source.AboutQuery, yield func(source.Resource) error) error {
	asked := make(map[fhir.Ref]bool, len(q.Refs))
	types, ids := make([]string, 0, len(q.Refs)), make([]string, 0, len(q.Refs))
	for _, ref := range q.Refs {
		if fhir.IsReferenced(ref.Type) && !asked[fhir.Ref(ref)] {
			asked[fhir.Ref(ref)] = true
			types, ids = append(types, ref.Type), append(ids, ref.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	at := instant(q.AsOf)
	text := "SELECT " + columns("Provenance") + " FROM " + leaf("Provenance") + ` AS r
		WHERE r.patient = '' AND r.left_out IS NULL AND r.id IN (
		SELECT t.provenance FROM target AS t JOIN unnest($2::text[], $3::text[]) AS asked (type, id) USING (type, id))
		AND ` + visible
	var scanner fhir.Scanner
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		row := newRow(conn, "Provenance")
		return read(ctx, conn, "Provenance", at, row.query(text, []any{at, types, ids}, func(r source.Resource) error {
			facts, err := scanner.Scan(r.Body)
			if err != nil { // it was loaded under other rules; the caller decides
				return yield(r) //nolint:nilerr // see above
			}
			wanted, all := false, facts.Unresolved+facts.Foreign+facts.Invalid == 0
			for _, target := range facts.Subjects {
				wanted = wanted || asked[target]
				all = all && fhir.IsReferenced(target.Type)
			}
			if !wanted || !all {
				return nil
			}
			return yield(r)
		}))
	})
}

// Patients implements source.Source. It reads by the index of ids, so that the server need not sort.
func (s *Source) Patients(ctx context.Context, asOf time.Time, yield func(id string) error) error {
	at := instant(asOf)
	text := "SELECT r.head, '' FROM " + leaf("Patient") + " AS r WHERE " + visible + " ORDER BY r.id"
	return s.patients(ctx, at, text, []any{at}, yield)
}

// patients yields the ids that a query of heads returns.
func (s *Source) patients(
	ctx context.Context, at pgtype.Timestamptz, text string, args []any, yield func(id string) error,
) error {
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		row := newRow(conn, "Patient")
		return read(ctx, conn, "Patient", at, row.query(text, args, func(r source.Resource) error { return yield(r.ID) }))
	})
}

// Everything implements source.Source. It reads the table in its physical order, a range of patients by their index, and a
// window by that of changes.
func (s *Source) Everything(ctx context.Context, q source.EverythingQuery, yield func(source.Resource) error) error {
	if !fhir.IsStored(q.Type) {
		return errNoType(q.Type)
	}
	if !fhir.InCompartment(q.Type) { // no row has a patient: all are in one range, and need no index
		if q.From != "" {
			return nil
		}
		q.To, q.Bound = "", nil
	}
	at := instant(q.AsOf)
	text, args := " FROM "+leaf(q.Type)+" AS r WHERE "+visible, []any{at}
	switch {
	case q.Window != source.Window{}:
		text, args = walk(q.Type, q.AsOf, q.Window, q.From, "<", q.To)
		text += " AND " + notEnded
		q.Bound = nil // as in forPatients
	case q.From != "" && q.To != "":
		text, args = text+" AND r.patient >= $2 AND r.patient < $3", append(args, q.From, q.To)
	case q.From != "":
		text, args = text+" AND r.patient >= $2", append(args, q.From)
	case q.To != "":
		text, args = text+" AND r.patient < $2", append(args, q.To)
	}
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		narrowing, err := worthwhile(ctx, conn, q.Narrowing, text, args)
		if err != nil {
			return err
		}
		row := newRow(conn, q.Type)
		var queries []query
		if narrowing.Bound != nil && q.From == "" {
			// Narrowing takes memory for the rows of one patient, so those without a patient are read as they are.
			homeless := "SELECT " + columns(q.Type) + " FROM " + leaf(q.Type) + " AS r WHERE r.patient = '' AND " + visible
			queries = append(queries, row.query(homeless, []any{at}, yield))
			text += " AND r.patient > ''"
		}
		return read(ctx, conn, q.Type, at, append(queries, row.narrow(narrowing, text, args, func(string) bool { return true },
			func() error { return yield(row.resource) }))...)
	})
}

// instant returns the argument $1 of visible.
func instant(asOf time.Time) pgtype.Timestamptz {
	if asOf.IsZero() {
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: asOf, Valid: true}
}

// onConnection calls use with a connection of the pool.
func (s *Source) onConnection(ctx context.Context, use func(*pgxpool.Conn) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return pgdb.Wrap("connect to the source", err)
	}
	defer conn.Release()
	return use(conn)
}

// query is one query, the function that decodes a row of it, and the one that takes what was decoded.
type query struct {
	text string
	args []any
	read func(values [][]byte) error
	take func() error
}

// read runs the queries in one batch, and fails when versions that they need were trimmed.
func read(ctx context.Context, conn *pgxpool.Conn, typ string, at pgtype.Timestamptz, queries ...query) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var batch pgx.Batch
	for _, q := range queries {
		batch.Queue(q.text, q.args...)
	}
	batch.Queue(trimmed, at)
	results := conn.SendBatch(ctx, &batch)
	var refused error // of yield, returned unchanged
	err := func() error {
		for _, q := range queries {
			rows, err := results.Query()
			if err != nil {
				return err
			}
			for rows.Next() {
				if err := ctx.Err(); err != nil { // rows may be buffered
					return err
				}
				if err := q.read(rows.RawValues()); err != nil {
					return err
				}
				if refused = q.take(); refused != nil {
					return refused
				}
			}
			if err := rows.Err(); err != nil {
				return err
			}
		}
		var gone *bool // NULL when no load was sealed by then
		if err := results.QueryRow().Scan(&gone); err != nil {
			return err
		}
		if gone != nil && *gone {
			return errTrimmed
		}
		return nil
	}()
	if err != nil {
		cancel() // closes the connection without reading the rest
	}
	closeErr := results.Close()
	if refused != nil {
		return refused
	}
	return pgdb.Wrap("read "+typ, cmp.Or(err, closeErr))
}

// row decodes rows into one resource, which it reuses.
type row struct {
	types    *pgtype.Map
	resource source.Resource
	subjects []string // of a Provenance
}

func newRow(conn *pgxpool.Conn, typ string) *row {
	return &row{types: conn.Conn().TypeMap(), resource: source.Resource{Type: typ}}
}

// query returns a query of columns whose resources go to yield.
func (w *row) query(text string, args []any, yield func(source.Resource) error) query {
	return query{text, args, w.read, func() error { return yield(w.resource) }}
}

// read decodes a row of columns.
func (w *row) read(values [][]byte) error {
	r := &w.resource
	if err := readHead(r, values[0]); err != nil {
		return err
	}
	r.Subjects, r.Body = r.Named, values[1]
	if r.Type != "Provenance" {
		return nil
	}
	var err error
	w.subjects, err = readSubjects(w.types, w.subjects, values[2], values[3])
	r.Subjects = w.subjects
	return err
}

// readSubjects decodes the columns patient and others into the slice.
func readSubjects(types *pgtype.Map, subjects []string, patient, others []byte) ([]string, error) {
	subjects = subjects[:0]
	if others != nil {
		if err := types.Scan(pgtype.TextArrayOID, pgx.BinaryFormatCode, others, &subjects); err != nil {
			return nil, fmt.Errorf("read the subjects of a resource: %w", err)
		}
	} else if len(patient) > 0 {
		subjects = append(subjects, string(patient))
	}
	return subjects, nil
}
