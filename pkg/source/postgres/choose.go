package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// Costs of reading, in rows; only the ratio matters. BenchmarkPaths measures both: in memory a lookup costs 0.6 of a row
// of a kilobyte (1.2 and 2 microseconds). On disk a lookup costs one random page read, while a range is read
// ahead: dozens of rows. The constant lies in between. It need not be exact where both paths cost about the same.
const (
	rowCost    = 1.0
	lookupCost = 4.0 // one more index descent
)

// scans reports whether to read the range from the first to the last patient, skipping others, instead of looking up
// each patient by the index. Lookups cost one descent for each of the asked patients, a scan costs the rows of the
// other patients within the range. perPatient is the number of rows of the type per patient.
func scans(asked, within int64, perPatient float64) bool {
	return float64(within-asked)*perPatient*rowCost < float64(asked)*lookupCost
}

// mostWithin returns the number of patients in the range from which scans returns false; counting can stop there.
func mostWithin(asked int64, perPatient float64) int64 {
	return asked + int64(float64(asked)*lookupCost/(perPatient*rowCost)) + 1
}

// chooseScan applies scans to a query whose patients are sorted and not empty. It counts the patients in the range by the
// index of Patient, up to mostWithin.
func (s *Source) chooseScan(ctx context.Context, conn *pgxpool.Conn, q source.Query, types sizes) (bool, error) {
	asked := int64(len(q.Patients))
	patients := max(types["Patient"].Resources, 1)
	perPatient := max(float64(types[q.Type].Resources)/float64(patients), 1/float64(patients))
	var within int64
	err := conn.QueryRow(ctx, `SELECT count(*) FROM (
		SELECT FROM resource_patient WHERE patient BETWEEN $1 AND $2 AND ended IS NULL LIMIT $3) AS within`,
		q.Patients[0], q.Patients[len(q.Patients)-1], mostWithin(asked, perPatient)).Scan(&within)
	if err != nil {
		return false, pgdb.Wrap("count patients", err)
	}
	return scans(asked, max(within, asked), perPatient), nil
}
