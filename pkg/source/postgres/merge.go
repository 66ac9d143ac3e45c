package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// change adds up what one merge changed.
type change struct {
	size    source.TypeSize // growth
	leftOut export.Tally    // growth of what no export of patients contains
	unheld  int64           // added resources about patients that the store does not hold
}

// merge merges the staged resources and deletions of one type into its table, in one transaction.
func (l *Load) merge(ctx context.Context, typ string) error {
	var merged Merged
	var grown change
	if err := l.makeStage(ctx, typ); err != nil {
		return err
	}
	err := l.inStep(ctx, func(tx pgx.Tx) (err error) {
		if merged, err = l.makeRoom(ctx, tx, typ, &grown); err != nil {
			return err
		}
		if typ == "Provenance" {
			if err := l.attribute(ctx, tx, &grown); err != nil {
				return err
			}
		}
		added, err := l.insert(ctx, tx, typ, &grown)
		merged.Added = added - merged.Replaced
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grown[typ] = grown
	l.touched[typ] = merged.Added + merged.Replaced + merged.Deleted
	l.total.Added += merged.Added
	l.total.Replaced += merged.Replaced
	l.total.Unchanged += merged.Unchanged
	l.total.Deleted += merged.Deleted
	return nil
}

// makeRoom ends the versions that the load replaces or deletes, and deletes the staged rows that need no insert.
func (l *Load) makeRoom(ctx context.Context, tx pgx.Tx, typ string, grown *change) (merged Merged, err error) {
	table, staged := leaf(typ), stage(typ)
	if err := pgdb.CheckStaged(ctx, tx, staged, l.staged[typ]); err != nil {
		return merged, err
	}
	of := " WHERE type = '" + typ + "'"
	if err := pgdb.CheckStaged(ctx, tx, deletions+of, l.deleted[typ]); err != nil {
		return merged, err
	}
	if l.deleted[typ] > 0 {
		err = run(ctx, tx, "DELETE FROM "+staged+` AS s USING (
			SELECT id, max(place) AS place FROM `+deletions+of+` GROUP BY id) AS d WHERE s.id = d.id AND s.place < d.place`)
		if err != nil {
			return merged, err
		}
	}
	err = run(ctx, tx, "ANALYZE "+staged+" (id, last_updated, patient)",
		// Keep the newest version of each resource (spec 11): by version if all have one, else by lastUpdated, on a tie the
		// later one. A refused row does not withhold a good one of the same version.
		"DELETE FROM "+staged+` AS s USING (SELECT ctid, row_number() OVER (PARTITION BY id
				ORDER BY CASE WHEN numbered THEN version END DESC NULLS LAST, last_updated DESC NULLS LAST,
				numbered AND refused, place DESC) AS rank
			FROM (SELECT ctid, id, version, last_updated, place, octet_length(head) = 0 AS refused,
				bool_and(version IS NOT NULL) OVER (PARTITION BY id) AS numbered FROM `+staged+`) AS all_versions) AS d
			WHERE s.ctid = d.ctid AND d.rank > 1`)
	if err != nil {
		return merged, err
	}
	if l.cfg.DeleteMissing && l.staged[typ] > 0 {
		merged.Deleted, err = l.end(ctx, tx, typ, "NOT EXISTS (SELECT FROM "+staged+" AS s WHERE s.id = r.id)", everyEnded, grown)
		if err != nil {
			return merged, err
		}
	}
	if l.deleted[typ] > 0 {
		deleted, err := l.end(ctx, tx, typ, "r.id IN (SELECT id FROM "+deletions+of+
			") AND NOT EXISTS (SELECT FROM "+staged+" AS s WHERE s.id = r.id)", everyEnded, grown)
		merged.Deleted += deleted
		if err != nil {
			return merged, err
		}
	}
	// What is staged after a deletion replaces any version of the store.
	err = tx.QueryRow(ctx, "WITH same AS (DELETE FROM "+staged+" AS s USING "+table+` AS r
		LEFT JOIN (SELECT DISTINCT id FROM `+deletions+of+`) AS d ON d.id = r.id
		WHERE r.id = s.id AND r.ended IS NULL AND (CASE WHEN d.id IS NOT NULL THEN false
			WHEN r.version <> s.version THEN r.version > s.version
			WHEN r.version = s.version AND `+refused+`
				THEN coalesce(r.last_updated, '-infinity') >= coalesce(s.last_updated, '-infinity')
			ELSE coalesce(r.last_updated, '-infinity') > coalesce(s.last_updated, '-infinity') END
			OR r.head = s.head AND r.body = s.body) RETURNING s.head)
		SELECT count(*) FROM same AS s WHERE NOT `+refused).Scan(&merged.Unchanged)
	if err != nil {
		return merged, err
	}
	withheld, err := l.end(ctx, tx, typ, "r.id IN (SELECT s.id FROM "+staged+" AS s WHERE "+refused+")", everyEnded, grown)
	if err != nil {
		return merged, err
	}
	merged.Deleted += withheld
	if err := run(ctx, tx, "DELETE FROM "+staged+" AS s WHERE "+refused); err != nil {
		return merged, err
	}
	buried := everyEnded // NewPatients needs the intervals of all versions
	switch typ {
	case "Patient":
	case "Provenance":
		buried = "" // the patients of the new versions are not known yet: attribute
	default:
		buried += " JOIN " + staged + ` AS s USING (id)
			WHERE (ended.patient, ended.others) IS DISTINCT FROM (s.patient, s.others)`
	}
	merged.Replaced, err = l.end(ctx, tx, typ, "r.id IN (SELECT s.id FROM "+staged+" AS s)", buried, grown)
	return merged, err
}

// insert copies the remaining staged rows into the table and returns their number.
func (l *Load) insert(ctx context.Context, tx pgx.Tx, typ string, grown *change) (added int64, err error) {
	table, staged := leaf(typ), stage(typ)
	// In the order of patients, because an export reads adjacent patients. rows returns the error.
	rows, _ := tx.Query(ctx, `WITH added AS (
		INSERT INTO `+table+` (last_updated, version, born, type, id, patient, others, left_out, head, body, `+sketchColumns+`)
		SELECT last_updated, version, $1, $2, id, patient, others, left_out, head, body, `+sketchColumns+`
			FROM `+staged+` ORDER BY patient, id
		RETURNING octet_length(body) + 1 AS bytes, left_out, patient)
		SELECT coalesce(left_out, ''), count(*), coalesce(sum(bytes), 0)::bigint, count(*) FILTER (
			WHERE patient <> '' AND $2 <> 'Patient' AND NOT EXISTS (
				SELECT FROM resource_patient AS p WHERE p.id = added.patient AND p.ended IS NULL))
		FROM added GROUP BY left_out`, l.no, typ)
	var reason export.Reason
	var n, bytes, unheld int64
	_, err = pgx.ForEachRow(rows, []any{&reason, &n, &bytes, &unheld}, func() error {
		added += n
		grown.add(typ, reason, n, bytes)
		grown.unheld += unheld
		return nil
	})
	if err != nil {
		return added, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO additional_subject (type, patient, id)
		SELECT $1, p.patient, id FROM `+staged+` CROSS JOIN unnest(others[2:]) AS p (patient)
		WHERE others IS NOT NULL AND p.patient < '~' ON CONFLICT DO NOTHING`, typ) // not the sentinels
	return added, err
}

func (c *change) add(typ string, reason export.Reason, n, bytes int64) {
	c.size.Resources += n
	c.size.Bytes += bytes
	if reason != "" {
		c.leftOut.Add(typ, reason, n)
	}
}

// everyEnded is the argument buried of end for all versions.
const everyEnded = "ended"

// end ends the current versions r that meet the condition, and returns their number. Those of the table ended that the
// clause selects leave a record in tombstone, "" for none.
func (l *Load) end(
	ctx context.Context, tx pgx.Tx, typ, condition, buried string, grown *change,
) (ended int64, err error) {
	text := `WITH ended AS (
		UPDATE ` + leaf(typ) + ` AS r SET ended = $1 WHERE r.ended IS NULL AND ` + condition + `
		RETURNING r.born, r.id, r.patient, r.others, r.left_out, octet_length(r.body) + 1 AS bytes)`
	if buried != "" {
		text += `, buried AS (INSERT INTO tombstone (type, id, born, patient, others, began)
			SELECT '` + typ + "', ended.id, $1, ended.patient, ended.others, ended.born FROM " + buried + ")"
	}
	text += " SELECT coalesce(left_out, ''), count(*), coalesce(sum(bytes), 0)::bigint FROM ended GROUP BY left_out"
	rows, _ := tx.Query(ctx, text, l.no) // rows returns the error
	var reason export.Reason
	var n, bytes int64
	_, err = pgx.ForEachRow(rows, []any{&reason, &n, &bytes}, func() error {
		ended += n
		grown.add(typ, reason, -n, -bytes)
		return nil
	})
	return ended, err
}
