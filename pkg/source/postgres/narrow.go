package postgres

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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

// narrow returns the query of what is selected of the versions r, without those that n leaves out, and one that counts
// these for each patient of those that asked returns true for; "" if by is not a column of r.
func narrow(
	types *pgtype.Map, n source.Narrowing, selected, from string, args []any, by string, asked func(patient string) bool,
) (kept query, leftOut []query) {
	if n.Bound == nil {
		return query{text: selected + from, args: args}, nil
	}
	excluded, args := excluded(n.Bound, args)
	var patient string
	var rows int64
	count := query{text: "SELECT " + by + ", count(*)" + from + " AND " + excluded + " GROUP BY 1", args: args}
	count.read = func(values [][]byte) error {
		patient = string(values[0])
		return types.Scan(pgtype.Int8OID, pgx.BinaryFormatCode, values[1], &rows)
	}
	count.take = func() error {
		if asked(patient) {
			n.LeftOut(rows)
		}
		return nil
	}
	return query{text: selected + from + " AND " + excluded + " IS NOT TRUE", args: args}, []query{count}
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
