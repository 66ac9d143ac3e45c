package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// What reading costs, in units of reading one row and passing it over; the choice hangs on the ratio alone. BenchmarkPaths
// measures both: with everything in memory a lookup costs 0.6 of a row of a kilobyte (1.2 and 2 microseconds). From a disk
// it costs a page read by itself, where rows in a row come with the pages that are read ahead: dozens of rows. This stands
// between, and where the two paths cost the same it matters little which is taken.
const (
	rowCost    = 1.0
	lookupCost = 4.0 // one more descent of the index
)

// path is how a slice of patients is read.
type path int

const (
	lookups path = iota // each patient by the index
	scan                // the range from the first to the last patient; others' rows are read and passed over
)

// choose decides by what each path reads in vain: a lookup costs a descent for every patient asked for, a range the
// rows of every patient in between who was not asked for.
//
// asked and within are counts of patients; perPatient is how many rows of the type one has.
func choose(asked, within int64, perPatient float64) path {
	if float64(within-asked)*perPatient*rowCost < float64(asked)*lookupCost {
		return scan
	}
	return lookups
}

// mostWithin is from which count of patients in the range on a range cannot be chosen, so that nobody needs to count
// further.
func mostWithin(asked int64, perPatient float64) int64 {
	return asked + int64(float64(asked)*lookupCost/(perPatient*rowCost)) + 1
}

// pathFor chooses the path for a query whose patients are sorted and not empty. The patients in the range are counted
// in the index of Patient, as far as the answer may depend on it.
func (s *Source) pathFor(ctx context.Context, conn *pgxpool.Conn, q source.Query, types shape) (path, error) {
	asked := int64(len(q.Patients))
	patients := max(types["Patient"].Resources, 1)
	perPatient := max(float64(types[q.Type].Resources)/float64(patients), 1/float64(patients))
	var within int64
	err := conn.QueryRow(ctx, `SELECT count(*) FROM (
		SELECT FROM resource_patient WHERE patient BETWEEN $1 AND $2 AND ended IS NULL LIMIT $3) AS within`,
		q.Patients[0], q.Patients[len(q.Patients)-1], mostWithin(asked, perPatient)).Scan(&within)
	if err != nil {
		return 0, pgdb.Wrap("count patients", err)
	}
	return choose(asked, max(within, asked), perPatient), nil
}
