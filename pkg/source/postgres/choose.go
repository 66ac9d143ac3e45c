package postgres

import (
	"context"
	"fmt"

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

// A window leaves out rows for less than it costs to send one, and an entry of the index of changes for much less.
const (
	filterCost = 0.25
	entryCost  = 0.05
)

// path is a way to read the resources of patients.
type path int

const (
	byPatient path = iota // each patient by the index of patients
	byRange               // the range from the first to the last patient, skipping others
	byChange              // the versions in the window by the index of changes, skipping those of other patients
)

// choose returns the cheapest path of a query whose patients are sorted and not empty.
func (s *Source) choose(ctx context.Context, conn *pgxpool.Conn, q source.Query, types sizes) (path, error) {
	if q.Window != (source.Window{}) {
		if walks, err := s.chooseWalk(ctx, conn, q, types); walks || err != nil {
			return byChange, err
		}
	}
	scan, err := s.chooseScan(ctx, conn, q, types)
	if scan {
		return byRange, err
	}
	return byPatient, err
}

// chooseWalk reports whether the versions in the window, of all patients in the range, cost less than the rows of the asked
// patients. It counts them by the index of changes, as far as needed. In a window by date the server reads all entries of
// the range: it is not counted if the range has too many.
func (s *Source) chooseWalk(ctx context.Context, conn *pgxpool.Conn, q source.Query, types sizes) (bool, error) {
	asked, first, last := int64(len(q.Patients)), q.Patients[0], q.Patients[len(q.Patients)-1]
	if !q.Since.IsZero() {
		within, err := countWithin(ctx, conn, first, last, int64(float64(asked)*filterCost/entryCost)+1)
		if err != nil || float64(within)*entryCost > float64(asked)*filterCost {
			return false, err
		}
	}
	most := int64(float64(asked) * (perPatient(q.Type, types)*filterCost + 1))
	from, args := walk(q.Type, q.AsOf, q.Window, first, "<=", last)
	var changed int64
	err := conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM (SELECT%s LIMIT $%d) AS changed", from, len(args)+1),
		append(args, most+1)...).Scan(&changed)
	return err == nil && changed <= most, pgdb.Wrap("count changes", err)
}

// perPatient is the number of rows of the type for each patient.
func perPatient(typ string, types sizes) float64 {
	patients := float64(max(types["Patient"].Resources, 1))
	return max(float64(types[typ].Resources)/patients, 1/patients)
}

// countWithin counts the patients in the range by the index of Patient, up to most.
func countWithin(ctx context.Context, conn *pgxpool.Conn, first, last string, most int64) (within int64, err error) {
	err = conn.QueryRow(ctx, `SELECT count(*) FROM (
		SELECT FROM resource_patient WHERE patient BETWEEN $1 AND $2 AND ended IS NULL LIMIT $3) AS within`,
		first, last, most).Scan(&within)
	return within, pgdb.Wrap("count patients", err)
}

// scans reports whether byRange is cheaper than byPatient. Lookups cost one descent for each of the asked patients, a scan
// costs the rows of the other patients within the range. each is the number of rows of the type for each patient.
func scans(asked, within int64, each float64) bool {
	return float64(within-asked)*each*rowCost < float64(asked)*lookupCost
}

// mostWithin returns the number of patients in the range from which scans returns false; counting can stop there.
func mostWithin(asked int64, each float64) int64 {
	return asked + int64(float64(asked)*lookupCost/(each*rowCost)) + 1
}

// chooseScan applies scans to a query whose patients are sorted and not empty. It counts the patients in the range up to
// mostWithin.
func (s *Source) chooseScan(ctx context.Context, conn *pgxpool.Conn, q source.Query, types sizes) (bool, error) {
	asked, each := int64(len(q.Patients)), perPatient(q.Type, types)
	within, err := countWithin(ctx, conn, q.Patients[0], q.Patients[asked-1], mostWithin(asked, each))
	return scans(asked, max(within, asked), each), err
}
