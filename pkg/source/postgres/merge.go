package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// merge merges the staged resources of one type into its table, in one transaction.
func (l *Load) merge(ctx context.Context, typ string) error {
	var merged Merged
	var grown source.TypeSize
	err := l.inStep(ctx, func(tx pgx.Tx) (err error) {
		var ended, added source.TypeSize
		if merged, ended, err = l.makeRoom(ctx, tx, typ); err != nil {
			return err
		}
		if typ == "Provenance" {
			if err := l.attribute(ctx, tx); err != nil {
				return err
			}
		}
		if added, err = l.insert(ctx, tx, typ); err != nil {
			return err
		}
		merged.Added = added.Resources - merged.Replaced
		grown = source.TypeSize{Resources: added.Resources - ended.Resources, Bytes: added.Bytes - ended.Bytes}
		return nil
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

// makeRoom ends the versions that the load replaces, and deletes the staged rows that need no insert.
func (l *Load) makeRoom(ctx context.Context, tx pgx.Tx, typ string) (merged Merged, ended source.TypeSize, err error) {
	table, staged := leaf(typ), stage(typ)
	if err := pgdb.CheckStaged(ctx, tx, staged, l.staged[typ]); err != nil {
		return merged, ended, err
	}
	err = run(ctx, tx, "ANALYZE "+staged+" (id, last_updated, patient)",
		// Keep the newest version of each resource, on a tie the later one (L-14).
		"DELETE FROM "+staged+` AS s USING (SELECT ctid, row_number() OVER (
			PARTITION BY id ORDER BY last_updated DESC NULLS LAST, place DESC) AS rank FROM `+staged+`) AS d
			WHERE s.ctid = d.ctid AND d.rank > 1`)
	if err != nil {
		return merged, ended, err
	}
	if l.cfg.DeleteMissing && l.staged[typ] > 0 {
		ended, err = l.end(ctx, tx, typ, "NOT EXISTS (SELECT FROM "+staged+" AS s WHERE s.id = r.id)", true)
		if err != nil {
			return merged, ended, err
		}
		merged.Deleted = ended.Resources
	}
	same, err := tx.Exec(ctx, "DELETE FROM "+staged+" AS s USING "+table+` AS r
		WHERE r.id = s.id AND r.ended IS NULL AND (
			coalesce(r.last_updated, '-infinity') > coalesce(s.last_updated, '-infinity')
			OR r.head = s.head AND r.body = s.body)`)
	if err != nil {
		return merged, ended, err
	}
	merged.Unchanged = same.RowsAffected()
	replaced, err := l.end(ctx, tx, typ, "r.id IN (SELECT s.id FROM "+staged+" AS s)", false)
	merged.Replaced = replaced.Resources
	ended.Resources += replaced.Resources
	ended.Bytes += replaced.Bytes
	return merged, ended, err
}

// insert copies the remaining staged rows into the table.
func (l *Load) insert(ctx context.Context, tx pgx.Tx, typ string) (added source.TypeSize, err error) {
	table, staged := leaf(typ), stage(typ)
	// In the order of patients, because an export reads adjacent patients.
	err = tx.QueryRow(ctx, `WITH added AS (
		INSERT INTO `+table+` (last_updated, born, type, id, patient, others, head, body)
		SELECT last_updated, $1, $2, id, patient, others, head, body FROM `+staged+` ORDER BY patient, id
		RETURNING octet_length(body) + 1 AS bytes)
		SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM added`, l.no, typ).Scan(&added.Resources, &added.Bytes)
	if err != nil {
		return added, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO additional_subject (type, patient, id)
		SELECT $1, unnest(others[2:]), id FROM `+staged+` WHERE others IS NOT NULL ON CONFLICT DO NOTHING`, typ)
	return added, err
}

// end ends the current versions r that meet the condition, and returns their number and bytes. Deleted ones leave a
// tombstone.
func (l *Load) end(
	ctx context.Context, tx pgx.Tx, typ, condition string, deleted bool,
) (ended source.TypeSize, err error) {
	text := `WITH ended AS (
		UPDATE ` + leaf(typ) + ` AS r SET ended = $1 WHERE r.ended IS NULL AND ` + condition + `
		RETURNING r.type, r.id, r.patient, r.others, octet_length(r.body) + 1 AS bytes)`
	if deleted {
		text += `, buried AS (INSERT INTO tombstone (type, id, born, patient, others)
			SELECT type, id, $1, patient, others FROM ended)`
	}
	err = tx.QueryRow(ctx, text+" SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM ended", l.no).
		Scan(&ended.Resources, &ended.Bytes)
	return ended, err
}
