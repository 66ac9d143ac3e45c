package postgres

import (
	"context"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// attribute recomputes the patients of every Provenance that this load affects: one with a target that was added, changed
// or deleted, or with a target that is itself affected. A Provenance is about the patients of its targets (spec 10).
//
// If only the patients of a Provenance change, it gets a new version with the same text, so that older snapshots keep
// the old patients.
func (l *Load) attribute(ctx context.Context, tx pgx.Tx) error {
	if err := pgdb.CheckStaged(ctx, tx, targets, l.targets); err != nil {
		return err
	}
	if err := l.findAffected(ctx, tx); err != nil {
		return err
	}
	if err := findPatients(ctx, tx); err != nil {
		return err
	}
	no := strconv.Itoa(int(l.no))
	return run(ctx, tx,
		`CREATE TEMPORARY TABLE verdict ON COMMIT DROP AS SELECT p.id, p.born, found.patient, found.others
			FROM affected AS a JOIN provenance AS p ON p.id = a.id
			CROSS JOIN LATERAL (SELECT coalesce(min(b.patient), '') AS patient,
				CASE WHEN count(*) > 1 THEN array_agg(b.patient ORDER BY b.patient) END AS others
				FROM about AS b WHERE b.id = p.id) AS found
			WHERE found.patient <> p.patient OR found.others IS DISTINCT FROM p.others`,
		"DROP VIEW provenance",
		"ANALYZE verdict",
		"UPDATE "+stage("Provenance")+` AS s SET patient = v.patient, others = v.others FROM verdict AS v
			WHERE s.id = v.id AND v.born = `+no,
		"DELETE FROM verdict WHERE born = "+no,
		"UPDATE resource_provenance AS r SET ended = "+no+" FROM verdict AS v WHERE r.id = v.id AND r.ended IS NULL",
		`INSERT INTO resource_provenance (last_updated, born, type, id, patient, others, head, body)
			SELECT r.last_updated, `+no+`, r.type, r.id, v.patient, v.others, r.head, r.body
			FROM verdict AS v JOIN resource_provenance AS r ON r.id = v.id AND r.born = v.born ORDER BY v.patient, r.id`,
		`INSERT INTO target (born, provenance, type, id) SELECT `+no+`, t.provenance, t.type, t.id
			FROM verdict AS v JOIN target AS t ON t.provenance = v.id AND t.born = v.born`,
		`INSERT INTO additional_subject (type, patient, id) SELECT 'Provenance', unnest(others[2:]), id FROM verdict
			WHERE others IS NOT NULL ON CONFLICT DO NOTHING`)
}

// run executes the statements.
func run(ctx context.Context, tx pgx.Tx, statements ...string) error {
	_, err := tx.Exec(ctx, strings.Join(statements, ";"))
	return err
}

// findAffected creates the view provenance, the versions that are current after this load, and the table affected, the
// ids whose patients may have changed.
func (l *Load) findAffected(ctx context.Context, tx pgx.Tx) error {
	no := strconv.Itoa(int(l.no))
	err := run(ctx, tx,
		`CREATE TEMPORARY VIEW provenance AS SELECT id, born, patient, others FROM resource_provenance WHERE ended IS NULL
			UNION ALL SELECT id, `+no+`, '', NULL FROM `+stage("Provenance"),
		`CREATE TEMPORARY TABLE affected (id text COLLATE "C" PRIMARY KEY) ON COMMIT DROP`,
		`INSERT INTO target (born, provenance, type, id)
			SELECT DISTINCT `+no+`, t.provenance, t.type, t.id FROM `+targets+` AS t
			JOIN `+stage("Provenance")+` AS s ON s.place = t.place AND s.id = t.provenance`,
		"INSERT INTO affected SELECT id FROM "+stage("Provenance"),
		"INSERT INTO affected SELECT id FROM resource_provenance WHERE ended = "+no+" ON CONFLICT DO NOTHING")
	if err != nil {
		return err
	}
	for typ, rows := range l.touched {
		if rows == 0 {
			continue
		}
		_, err := tx.Exec(ctx, `INSERT INTO affected SELECT t.provenance FROM target AS t
			WHERE t.type = $2 AND t.id IN (SELECT id FROM `+leaf(typ)+` WHERE born = $1 OR ended = $1)
			ON CONFLICT DO NOTHING`, l.no, typ)
		if err != nil {
			return err
		}
	}
	return run(ctx, tx,
		// Provenance that targets an affected one, transitively. UNION ends the recursion when it finds no new row.
		`INSERT INTO affected
			WITH RECURSIVE further (id) AS (
				SELECT id FROM affected
				UNION SELECT t.provenance FROM target AS t JOIN further ON t.type = 'Provenance' AND t.id = further.id)
			SELECT id FROM further ON CONFLICT DO NOTHING`,
		"DELETE FROM affected WHERE id NOT IN (SELECT id FROM provenance)",
		"ANALYZE affected")
}

// findPatients creates the table about: the patients of each affected Provenance.
func findPatients(ctx context.Context, tx pgx.Tx) error {
	err := run(ctx, tx,
		// The targets of each current version.
		`CREATE TEMPORARY TABLE aim ON COMMIT DROP AS SELECT t.provenance, t.type, t.id FROM affected AS a
			JOIN provenance AS r ON r.id = a.id
			JOIN target AS t ON t.provenance = r.id AND t.born = r.born`,
		"ANALYZE aim",
		`CREATE TEMPORARY TABLE about (id text COLLATE "C", patient text COLLATE "C", PRIMARY KEY (id, patient))
			ON COMMIT DROP`,
		"INSERT INTO about SELECT provenance, id FROM aim WHERE type = 'Patient'",
		// The patients of a Provenance that is not affected are known.
		`INSERT INTO about SELECT a.provenance, p.patient FROM aim AS a
			JOIN provenance AS r ON a.type = 'Provenance' AND r.id = a.id
			CROSS JOIN unnest(coalesce(r.others, ARRAY[r.patient])) AS p (patient)
			WHERE p.patient <> '' AND a.id NOT IN (SELECT id FROM affected) ON CONFLICT DO NOTHING`)
	if err != nil {
		return err
	}
	rows, _ := tx.Query(ctx, // rows returns the error
		"SELECT DISTINCT type FROM aim WHERE type NOT IN ('Patient', 'Provenance')")
	types, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, typ := range types {
		if !fhir.InCompartment(typ) {
			continue
		}
		_, err := tx.Exec(ctx, `INSERT INTO about SELECT a.provenance, p.patient FROM aim AS a
			JOIN `+leaf(typ)+` AS r ON r.id = a.id AND r.ended IS NULL
			CROSS JOIN unnest(coalesce(r.others, ARRAY[r.patient])) AS p (patient)
			WHERE a.type = $1 AND p.patient <> '' ON CONFLICT DO NOTHING`, typ)
		if err != nil {
			return err
		}
	}
	return run(ctx, tx, `INSERT INTO about
		WITH RECURSIVE further (id, patient) AS (
			SELECT id, patient FROM about
			UNION SELECT a.provenance, further.patient FROM aim AS a
				JOIN further ON a.type = 'Provenance' AND a.id = further.id)
		SELECT id, patient FROM further ON CONFLICT DO NOTHING`)
}
