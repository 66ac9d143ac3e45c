package postgres

import (
	"context"
	"iter"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// attribute recomputes the patients of every Provenance that this load affects: one with a target that was added, changed
// or deleted, or with a target that is itself affected. A Provenance is about the patients of its targets (spec 10).
//
// If only the patients of a Provenance change, it gets a new version with the same text, so that older snapshots keep
// the old patients.
//
// A target that the store does not hold, one whose own patient is unknown, and one of a type that no export of patients
// contains, is somebody (source.Somebody): resources of such types may name patients in any element. A Provenance without a
// patient is left out, unless all of its targets are held and of referenced types.
func (l *Load) attribute(ctx context.Context, tx pgx.Tx, grown *change) error {
	if err := pgdb.CheckStaged(ctx, tx, targets, l.targets); err != nil {
		return err
	}
	if err := l.findAffected(ctx, tx); err != nil {
		return err
	}
	if err := findPatients(ctx, tx); err != nil {
		return err
	}
	if err := propagate(ctx, tx); err != nil {
		return err
	}
	no := strconv.Itoa(int(l.no))
	err := run(ctx, tx,
		"ANALYZE about",
		`CREATE TEMPORARY TABLE verdict ON COMMIT DROP AS
			SELECT p.id, p.born, p.left_out AS was, v.patient, v.others, v.left_out
			FROM affected AS a JOIN provenance AS p ON p.id = a.id
			CROSS JOIN LATERAL (SELECT array_agg(b.patient ORDER BY b.patient) AS list,
				count(*) FILTER (WHERE b.patient < '`+source.Somebody+`') AS patients,
				coalesce(bool_or(b.patient = '`+many+`'), false) AS many
				FROM about AS b WHERE b.id = p.id) AS found
			CROSS JOIN LATERAL (SELECT found.many OR found.patients > `+most+` AS many) AS too
			CROSS JOIN LATERAL (SELECT
				CASE WHEN found.patients = 0 OR too.many THEN '' ELSE found.list[1] END AS patient,
				CASE WHEN found.patients > 0 AND NOT too.many AND cardinality(found.list) > 1 THEN found.list END AS others,
				CASE WHEN too.many THEN '`+string(export.TooManyReferences)+`'
					WHEN found.patients > 0 THEN NULL
					WHEN found.list = ARRAY['`+source.Foreigner+`'] THEN '`+string(export.ForeignPatient)+`'
					WHEN found.list IS NOT NULL THEN '`+string(export.UnresolvedPatient)+`'
					WHEN NOT EXISTS (SELECT FROM aim AS t WHERE t.provenance = p.id)
						OR EXISTS (SELECT FROM aim AS t WHERE t.provenance = p.id AND NOT t.referenced)
						THEN '`+string(export.NoPatient)+`' END AS left_out) AS v
			WHERE (v.patient, v.others, v.left_out) IS DISTINCT FROM (p.patient, p.others, p.left_out)`,
		"DROP VIEW provenance",
		"ANALYZE verdict",
		"UPDATE "+stage("Provenance")+` AS s SET patient = v.patient, others = v.others, left_out = v.left_out
			FROM verdict AS v WHERE s.id = v.id AND v.born = `+no,
		"DELETE FROM verdict WHERE born = "+no,
		"UPDATE resource_provenance AS r SET ended = "+no+" FROM verdict AS v WHERE r.id = v.id AND r.ended IS NULL",
		`INSERT INTO resource_provenance (last_updated, version, born, type, id, patient, others, left_out, head, body,
				`+sketchColumns+`)
			SELECT r.last_updated, r.version, `+no+`, r.type, r.id, v.patient, v.others, v.left_out, r.head, r.body,
				`+sketchColumns+`
			FROM verdict AS v JOIN resource_provenance AS r ON r.id = v.id AND r.born = v.born ORDER BY v.patient, r.id`,
		`INSERT INTO target (born, provenance, type, id) SELECT `+no+`, t.provenance, t.type, t.id
			FROM verdict AS v JOIN target AS t ON t.provenance = v.id AND t.born = v.born`,
		`INSERT INTO additional_subject (type, patient, id) SELECT 'Provenance', p.patient, id
			FROM verdict CROSS JOIN unnest(others[2:]) AS p (patient)
			WHERE others IS NOT NULL AND p.patient < '`+source.Somebody+`' ON CONFLICT DO NOTHING`,
		bury(no, stage("Provenance")+" AS s ON s.id = r.id"), bury(no, "verdict AS s ON s.id = r.id AND s.born = r.born"))
	if err != nil {
		return err
	}
	rows, _ := tx.Query(ctx, // rows returns the error
		"SELECT coalesce(was, ''), coalesce(left_out, ''), count(*) FROM verdict GROUP BY was, left_out")
	var was, is export.Reason
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&was, &is, &n}, func() error {
		grown.add("Provenance", was, -n, 0)
		grown.add("Provenance", is, n, 0)
		return nil
	})
	return err
}

// bury returns a statement that records the versions of Provenance that this load ended and the join finds about others.
func bury(no, join string) string {
	return `INSERT INTO tombstone (type, id, born, patient, others, began)
		SELECT 'Provenance', r.id, ` + no + `, r.patient, r.others, r.born FROM resource_provenance AS r JOIN ` + join + `
		WHERE r.ended = ` + no + " AND (r.patient, r.others) IS DISTINCT FROM (s.patient, s.others)"
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
		`CREATE TEMPORARY VIEW provenance AS
			SELECT id, born, patient, others, left_out FROM resource_provenance WHERE ended IS NULL
			UNION ALL SELECT id, `+no+`, '', NULL, NULL FROM `+stage("Provenance"),
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
		if rows == 0 || !fhir.IsExportable(typ) { // see findPatients
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
		"DELETE FROM affected AS a WHERE NOT EXISTS (SELECT FROM provenance AS p WHERE p.id = a.id)",
		"ANALYZE affected")
}

// maxPatients bounds the patients of one Provenance, so that chains of Provenance take linear time. No export contains one
// that is about more, or one that targets it.
const maxPatients = 100

var most = strconv.Itoa(maxPatients)

// many in the table about stands for more than maxPatients patients.
const many = "~~"

// ofTarget selects, as p, whom a target of a Provenance is about: a lateral join with the row r of the target, which is
// null if the store does not hold it. unknown is the condition for a row without a patient to be about somebody.
func ofTarget(unknown string) string {
	return ` CROSS JOIN LATERAL unnest(CASE
		WHEN r.id IS NULL THEN ARRAY['` + source.Somebody + `']
		WHEN cardinality(r.others) > ` + strconv.Itoa(maxPatients+2) + ` THEN r.others[1:` + most + `] || '` + many + `'::text
		WHEN r.others IS NOT NULL THEN r.others
		WHEN r.patient <> '' THEN ARRAY[r.patient]
		WHEN r.left_out = '` + string(export.TooManyReferences) + `' THEN ARRAY['` + many + `']
		WHEN ` + unknown + ` THEN ARRAY['` + source.Somebody + `']
		ELSE '{}' END) AS p (patient)`
}

// findPatients creates the tables aim, the targets of each affected Provenance, and about, whom each is about. The
// targets that are affected Provenance are still missing.
func findPatients(ctx context.Context, tx pgx.Tx) error {
	var referenced []string
	for _, typ := range fhir.ExportableTypes() {
		if fhir.IsReferenced(typ) {
			referenced = append(referenced, "'"+typ+"'")
		}
	}
	err := run(ctx, tx,
		`CREATE TEMPORARY TABLE aim ON COMMIT DROP AS SELECT t.provenance, t.type, t.id,
			t.type IN (`+strings.Join(referenced, ", ")+`) AS referenced FROM affected AS a
			JOIN provenance AS r ON r.id = a.id
			JOIN target AS t ON t.provenance = r.id AND t.born = r.born`,
		"CREATE INDEX ON aim (provenance)",
		"ANALYZE aim",
		`CREATE TEMPORARY TABLE about (id text COLLATE "C", patient text COLLATE "C", PRIMARY KEY (id, patient))
			ON COMMIT DROP`,
		"INSERT INTO about SELECT provenance, id FROM aim WHERE type = 'Patient'", // whether it is held or not
		// The patients of a Provenance that is not affected are known.
		`INSERT INTO about SELECT a.provenance, p.patient FROM aim AS a
			LEFT JOIN resource_provenance AS r ON r.id = a.id AND r.ended IS NULL`+ofTarget(
			"r.left_out <> '"+string(export.NoPatient)+"'")+`
			WHERE a.type = 'Provenance' AND NOT EXISTS (SELECT FROM affected AS f WHERE f.id = a.id)
			ON CONFLICT DO NOTHING`)
	if err != nil {
		return err
	}
	rows, _ := tx.Query(ctx, "SELECT DISTINCT type FROM aim WHERE type <> 'Provenance'") // rows returns the error
	types, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, typ := range types {
		from := " LEFT JOIN (SELECT NULL AS id, NULL::text[] AS others, '' AS patient, NULL AS left_out) AS r ON false"
		unknown := "false"
		if fhir.IsExportable(typ) { // any other is somebody, held or not
			from = " LEFT JOIN " + leaf(typ) + " AS r ON r.id = a.id AND r.ended IS NULL"
		}
		if fhir.InCompartment(typ) { // a row of an older load has no reason
			unknown = "r.left_out IS DISTINCT FROM '" + string(export.NoPatient) + "'"
		}
		_, err := tx.Exec(ctx, "INSERT INTO about SELECT a.provenance, p.patient FROM aim AS a"+from+ofTarget(unknown)+
			" WHERE a.type = $1 ON CONFLICT DO NOTHING", typ)
		if err != nil {
			return err
		}
	}
	return nil
}

// propagate adds to about the patients that each affected Provenance has by others. Memory grows with the Provenance of
// Provenance, time with that and maxPatients.
func propagate(ctx context.Context, tx pgx.Tx) error {
	err := run(ctx, tx,
		`CREATE TEMPORARY TABLE link ON COMMIT DROP AS SELECT a.provenance, a.id FROM aim AS a
			WHERE a.type = 'Provenance' AND EXISTS (SELECT FROM affected AS f WHERE f.id = a.id)`,
		"CREATE INDEX ON link (provenance)", "CREATE INDEX ON link (id)", "ANALYZE link")
	if err != nil {
		return err
	}
	c := newChain()
	rows, _ := tx.Query(ctx, "SELECT provenance, id FROM link") // rows returns the error
	var from, to string
	if _, err := pgx.ForEachRow(rows, []any{&from, &to}, func() error { c.link(from, to); return nil }); err != nil {
		return err
	}
	if len(c.nodes) == 0 {
		return nil
	}
	rows, _ = tx.Query(ctx, `SELECT b.id, b.patient FROM about AS b WHERE EXISTS (SELECT FROM link WHERE provenance = b.id)
		OR EXISTS (SELECT FROM link WHERE id = b.id)`)
	_, err = pgx.ForEachRow(rows, []any{&from, &to}, func() error { c.add(c.node(from), c.patient(to)); return nil })
	if err != nil {
		return err
	}
	c.run()
	err = run(ctx, tx,
		`CREATE TEMPORARY TABLE reached (id text COLLATE "C", patient text COLLATE "C") ON COMMIT DROP`)
	if err != nil {
		return err
	}
	next, stop := iter.Pull2(c.about)
	defer stop()
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"reached"}, []string{"id", "patient"}, pgx.CopyFromFunc(func() ([]any, error) {
		id, patient, more := next()
		if !more {
			return nil, nil
		}
		return []any{id, patient}, nil
	}))
	if err != nil {
		return err
	}
	return run(ctx, tx, "INSERT INTO about SELECT id, patient FROM reached ON CONFLICT DO NOTHING")
}
