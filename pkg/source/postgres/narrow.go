package postgres

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// sketchColumns are the columns of a typefilter.Sketch. All are null in a row without one, which no query leaves out.
const sketchColumns = "codes, dated_from, dated_to, sketch_rules"

// sketchRules is the number of the rules under which rows are made. Those of attestations count too: the guard of an export
// does not see what is left out, and would read a row again that was made under others.
const sketchRules = source.Rules<<8 | typefilter.SketchRules

// sketchRow returns the values of sketchColumns.
func sketchRow(s typefilter.Sketch) []any {
	return []any{int64(s.Codes), s.From, s.To, int32(sketchRules)} //nolint:gosec // the bits count
}

// narrow returns the query for columns of the versions r that follow in from, without those that n leaves out. take gets
// what was decoded into row; asked reports whether the rows of a patient are asked for.
//
// Reading the rows is most of the work, so one pass over them counts for each patient what is left out and notes where the
// others are. The first row of each patient has no head, and the patient and that number as its body.
func (w *row) narrow(
	n source.Narrowing, from string, args []any, asked func(patient string) bool, take func() error,
) query {
	typ := w.resource.Type
	if n.Bound == nil {
		return query{"SELECT " + columns(typ) + from, args, w.read, take}
	}
	excluded, args := excluded(n.Bound, args)
	text := "SELECT " + strings.Replace(columns(typ), "r.body", "coalesce(r.body, a.patient || ' ' || a.left_out)", 1) + `
		FROM (SELECT r.patient, count(*) FILTER (WHERE ` + excluded + `) AS left_out,
			array_agg(r.ctid) FILTER (WHERE ` + excluded + " IS NOT TRUE) AS kept" + from + ` GROUP BY r.patient OFFSET 0) AS a
		CROSS JOIN LATERAL (SELECT NULL::tid AS place UNION ALL SELECT unnest(a.kept)) AS k
		LEFT JOIN ` + leaf(typ) + " AS r ON r.ctid = k.place"
	first := false
	return query{text, args, func(values [][]byte) error {
		if first = values[0] == nil; !first {
			return w.read(values)
		}
		patient, count, _ := bytes.Cut(values[1], []byte{' '})
		rows, err := strconv.ParseInt(string(count), 10, 64)
		if err == nil && asked(string(patient)) {
			n.LeftOut(rows)
		}
		return err
	}, func() error {
		if first {
			return nil
		}
		return take()
	}}
}

// A query is narrowed if at least one of leastShare of the first sampleRows rows would be left out: else it costs more than
// it saves (BenchmarkNarrowing).
const (
	leastShare = 3
	sampleRows = 1000
)

// worthwhile returns n, or nothing if a sample of the versions r in from shows that it leaves out too few.
func worthwhile(
	ctx context.Context, conn *pgxpool.Conn, n source.Narrowing, from string, args []any,
) (source.Narrowing, error) {
	if n.Bound == nil {
		return n, nil
	}
	excluded, args := excluded(n.Bound, args)
	var leftOut, rows int64
	err := conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FILTER (WHERE %s), count(*) FROM (SELECT r.*%s LIMIT %d) AS r",
		excluded, from, sampleRows), args...).Scan(&leftOut, &rows)
	if leftOut*leastShare < rows {
		n.Bound = nil
	}
	return n, pgdb.Wrap("count what is left out", err)
}

// excluded returns the condition for a version r to have no sketch that meets the bound, and the arguments with its own. It
// is null for a row without a sketch.
func excluded(b typefilter.Bound, args []any) (string, []any) {
	argument := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	var alternatives []string
	for _, a := range b {
		all := []string{"r.dated_to >= " + argument(a.From), "r.dated_from <= " + argument(a.To)}
		for _, masks := range a.Codes {
			var either []string
			for _, mask := range masks {
				bits := argument(int64(mask)) //nolint:gosec // the bits count
				either = append(either, "r.codes & "+bits+" = "+bits)
			}
			all = append(all, "("+strings.Join(either, " OR ")+")")
		}
		alternatives = append(alternatives, strings.Join(all, " AND "))
	}
	return fmt.Sprintf("(r.sketch_rules = %d AND r.others IS NULL AND NOT (%s))",
		sketchRules, strings.Join(alternatives, " OR ")), args
}
