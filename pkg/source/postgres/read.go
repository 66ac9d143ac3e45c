package postgres

import (
	"context"
	"errors"
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

// columns returns what a row tells, in the order of row.read. Whom the targets of a Provenance are about does not stand
// in its head: it changes without it.
func columns(typ string) string {
	if typ == "Provenance" {
		return "r.head, r.body, r.patient, r.others"
	}
	return "r.head, r.body"
}

// visible is the condition under which a version shows as of the instant $1. The newest load that was sealed then is
// looked up once a query; without one nothing shows.
const visible = `r.born <= (SELECT max(no) FROM load WHERE sealed_at <= $1)
	AND (r.ended IS NULL OR r.ended > (SELECT max(no) FROM load WHERE sealed_at <= $1))`

// trimmed tells whether anything that shows as of $1 may be gone. It is asked after the rows were read: trimming
// publishes its horizon before it deletes (trim.go).
const trimmed = `SELECT h.load > (SELECT max(no) FROM load WHERE sealed_at <= $1) FROM horizon AS h`

// ForPatients implements source.Source.
func (s *Source) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	if !fhir.InCompartment(q.Type) {
		return errNoType(q.Type)
	}
	// Only ids: the empty string stands for nobody in the tables.
	q.Patients = slices.DeleteFunc(slices.Clone(q.Patients), func(id string) bool { return !fhir.IsID(id) })
	if len(q.Patients) == 0 {
		return nil
	}
	types, err := s.shapeNow(ctx)
	if err != nil {
		return err
	}
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		chosen, err := s.pathFor(ctx, conn, q, types)
		if err != nil {
			return err
		}
		return forPatients(ctx, conn, q, chosen, yield)
	})
}

func forPatients(
	ctx context.Context, conn *pgxpool.Conn, q source.Query, chosen path, yield func(source.Resource) error,
) error {
	asked := func(patient string) bool { _, found := slices.BinarySearch(q.Patients, patient); return found }
	at := instant(q.AsOf)
	by, args := "= ANY($2)", []any{at, q.Patients}
	if chosen == scan {
		by, args = "BETWEEN $2 AND $3", []any{at, q.Patients[0], q.Patients[len(q.Patients)-1]}
	}
	one := "SELECT " + columns(q.Type) + " FROM " + leaf(q.Type) + " AS r WHERE r.patient " + by + " AND " + visible
	// Resources of several patients, by each but the smallest. Few types have any.
	several := "SELECT " + columns(q.Type) + ", a.patient FROM also AS a JOIN " + leaf(q.Type) + " AS r ON r.id = a.id" +
		" WHERE (SELECT true FROM also WHERE type = '" + q.Type + "' LIMIT 1)" +
		" AND a.type = '" + q.Type + "' AND a.patient " + by + " AND " + visible

	last, lastAsked := "", false // rows of one patient stand together
	return read(ctx, conn, q.Type, at,
		query{one, args, func(r *source.Resource, _ []byte) error {
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
		}},
		query{several, args, func(r *source.Resource, found []byte) error {
			// It came above when its smallest subject was asked for, and comes once for the smallest one that was.
			first := slices.IndexFunc(r.Subjects, asked)
			if first < 1 || r.Subjects[first] != string(found) {
				return nil
			}
			return yield(*r)
		}})
}

// ByID implements source.Source.
func (s *Source) ByID(ctx context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	if !fhir.IsReferenced(q.Type) {
		return errNoType(q.Type)
	}
	if len(q.IDs) == 0 {
		return nil
	}
	at := instant(q.AsOf)
	text := "SELECT " + columns(q.Type) + " FROM " + leaf(q.Type) + " AS r WHERE r.id = ANY($2) AND " + visible
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		return read(ctx, conn, q.Type, at, query{text, []any{at, q.IDs}, func(r *source.Resource, _ []byte) error {
			return yield(*r)
		}})
	})
}

// About implements source.Source. What a Provenance without a patient targets is read from its body: it counts only
// when everything in it is of a referenced type, as nobody knows whom the rest may be about.
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
	text := "SELECT " + columns("Provenance") + " FROM " + leaf("Provenance") + ` AS r WHERE r.patient = '' AND r.id IN (
		SELECT t.provenance FROM target AS t JOIN unnest($2::text[], $3::text[]) AS asked (type, id) USING (type, id))
		AND ` + visible
	var scanner fhir.Scanner
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		return read(ctx, conn, "Provenance", at, query{text, []any{at, types, ids}, func(r *source.Resource, _ []byte) error {
			facts, err := scanner.Scan(r.Body)
			if err != nil {
				return fmt.Errorf("read a Provenance: %w", err)
			}
			wanted, all := false, len(facts.Subjects) == fhir.CountTargets(r.Body)
			for _, target := range facts.Subjects {
				wanted = wanted || asked[target]
				all = all && fhir.IsReferenced(target.Type)
			}
			if !wanted || !all {
				return nil
			}
			return yield(*r)
		}})
	})
}

// instant is what $1 of visible stands for.
func instant(asOf time.Time) pgtype.Timestamptz {
	if asOf.IsZero() {
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: asOf, Valid: true}
}

// onConnection lends a connection. One whose query did not come to its end is closed, not read to its end.
func (s *Source) onConnection(ctx context.Context, use func(*pgxpool.Conn) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return pgdb.Wrap("connect to the source", err)
	}
	defer conn.Release()
	return use(conn)
}

// query is one query of the columns above, and what takes its rows. found is the column behind them, if there is one.
type query struct {
	text string
	args []any
	take func(r *source.Resource, found []byte) error
}

// yieldError carries an error of a yield past the errors of reading.
type yieldError struct{ error }

// read runs the queries one after the other, and fails when what they should have shown was trimmed.
func read(ctx context.Context, conn *pgxpool.Conn, typ string, at pgtype.Timestamptz, queries ...query) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var batch pgx.Batch
	for _, q := range queries {
		batch.Queue(q.text, q.args...)
	}
	batch.Queue(trimmed, at)
	results := conn.SendBatch(ctx, &batch)
	err := func() error {
		row := row{types: conn.Conn().TypeMap(), resource: source.Resource{Type: typ}}
		for _, q := range queries {
			rows, err := results.Query()
			if err != nil {
				return err
			}
			for rows.Next() {
				if err := ctx.Err(); err != nil { // what has come already is not worth more than what has not
					return err
				}
				found, err := row.read(rows.RawValues())
				if err != nil {
					return err
				}
				if err := q.take(&row.resource, found); err != nil {
					return yieldError{err}
				}
			}
			if err := rows.Err(); err != nil {
				return err
			}
		}
		var gone *bool // null when nothing was loaded by then
		if err := results.QueryRow().Scan(&gone); err != nil {
			return err
		}
		if gone != nil && *gone {
			return errTrimmed
		}
		return nil
	}()
	if err != nil {
		cancel() // closes the connection: the rest is not read
	}
	closeErr := results.Close()
	var yielded yieldError
	if errors.As(err, &yielded) {
		return yielded.error
	}
	if err == nil {
		err = closeErr
	}
	return pgdb.Wrap("read "+typ, err)
}

// row reads rows into one resource, again and again.
type row struct {
	types    *pgtype.Map
	resource source.Resource
	subjects []string // of a Provenance
}

// read takes a row apart: the columns, and what stands behind them.
func (w *row) read(values [][]byte) (found []byte, err error) {
	r := &w.resource
	if err := readHead(r, values[0]); err != nil {
		return nil, err
	}
	r.Subjects, r.Body = r.Named, values[1]
	values = values[2:]
	if r.Type == "Provenance" {
		w.subjects = w.subjects[:0]
		if values[1] != nil {
			err := w.types.Scan(pgtype.TextArrayOID, pgx.BinaryFormatCode, values[1], &w.subjects)
			if err != nil {
				return nil, fmt.Errorf("read the subjects of a Provenance: %w", err)
			}
		} else if len(values[0]) > 0 {
			w.subjects = append(w.subjects, string(values[0]))
		}
		r.Subjects = w.subjects
		values = values[2:]
	}
	if len(values) > 0 {
		found = values[0]
	}
	return found, nil
}
