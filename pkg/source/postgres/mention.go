package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// mention records who mentions which referenced resources, for the load and for all sealed loads of which it is not known:
// those of an earlier release, or under other rules. It runs after the merges, in one transaction: the patients of a
// Provenance are known then, and no two transactions wait for each other.
func (l *Load) mention(ctx context.Context) error {
	return l.inStep(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, // rows returns the error
			"SELECT no FROM load_batch WHERE sealed_at IS NOT NULL AND mentions IS DISTINCT FROM $1", source.Rules)
		loads, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return err
		}
		old := len(loads) > 0
		loads = append(loads, l.no)
		for _, typ := range fhir.ExportableTypes() {
			if !old && l.touched[typ] == 0 && typ != "Provenance" { // attribute adds versions of those that were not staged
				continue
			}
			if err := l.mentionType(ctx, tx, typ, loads); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, "UPDATE load_batch SET mentions = $1 WHERE no = ANY($2)", source.Rules, loads)
		return err
	})
}

// mentionType records the mentions of the rows of a type that the loads added. Most rows of a patient have the same
// references, so equal lists of them are dropped before they are split.
func (l *Load) mentionType(ctx context.Context, tx pgx.Tx, typ string, loads []int32) error {
	condition := "patient <> ''" // others are in no export of a group or of patients
	switch {
	case fhir.IsReferenced(typ):
		condition = "true"
	case typ == "Provenance":
		condition = "(patient <> '' OR left_out IS NULL)"
	}
	from := "SELECT patient, others, CASE WHEN patient = '' THEN '" + typ + "/' || id END AS itself, "
	where := " FROM " + leaf(typ) + " WHERE born = ANY($1) AND " + condition + " AND get_byte(head, 8) " // of the attestation
	_, err := tx.Exec(ctx, insertMentions(`SELECT DISTINCT patient, others, itself, convert_from(list, 'UTF8') AS list FROM (`+
		from+"substr(head, 10) AS text"+where+`= $2) AS r
		CROSS JOIN LATERAL (SELECT substr(text, position('\x0a'::bytea IN text) + 1) AS list) AS l
		WHERE octet_length(list) > 0`), loads, source.Rules)
	// Only attribute copies rows of an earlier load.
	if err != nil || len(loads) == 1 && typ != "Provenance" {
		return err
	}
	return l.mentionOutdated(ctx, tx, from+"body"+where+"<> $2", loads)
}

// insertMentions returns a statement that records what the query returns: patient, others, itself and the list of
// references.
func insertMentions(query string) string {
	return `INSERT INTO mention (ref, by) SELECT DISTINCT m.ref COLLATE "C" AS ref, b.by FROM (` + query + `) AS q
		CROSS JOIN LATERAL string_to_table(q.list, ' ') AS m (ref)
		CROSS JOIN LATERAL unnest(coalesce(q.others, ARRAY[coalesce(q.itself, q.patient)])) AS b (by)
		WHERE b.by < '` + source.Somebody + `' ORDER BY 1, 2 ON CONFLICT DO NOTHING`
}

// mentionOutdated does the same for rows that were attested under other rules, by their bodies: an export reads these, too.
// It reads on another connection while it writes.
func (l *Load) mentionOutdated(ctx context.Context, tx pgx.Tx, query string, loads []int32) error {
	rows, _ := l.turn.Query(ctx, query, loads, source.Rules) // rows has the error
	defer rows.Close()
	if !rows.Next() {
		return rows.Err()
	}
	err := run(ctx, tx, `CREATE TEMPORARY TABLE outdated (patient text COLLATE "C", others text[] COLLATE "C",
		itself text COLLATE "C", list text) ON COMMIT DROP`)
	if err != nil {
		return err
	}
	more := true
	columns := []string{"patient", "others", "itself", "list"}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"outdated"}, columns, pgx.CopyFromFunc(func() ([]any, error) {
		if !more {
			return nil, rows.Err()
		}
		var patient string
		var itself *string
		var others, list []string
		var body []byte
		if err := rows.Scan(&patient, &others, &itself, &body); err != nil {
			return nil, err
		}
		fhir.References(body, func(ref fhir.Ref) bool {
			if fhir.IsReferenced(ref.Type) {
				list = append(list, ref.Type+"/"+ref.ID)
			}
			return true
		})
		more = rows.Next()
		return []any{patient, others, itself, strings.Join(list, " ")}, nil
	}))
	if err != nil {
		return err
	}
	return run(ctx, tx, insertMentions("SELECT * FROM outdated"), "DROP TABLE outdated")
}

// Mentions implements source.Source. It returns pairs of any version, and the targets of a Provenance that mentions.
func (s *Source) Mentions(ctx context.Context, q source.MentionsQuery, yield func(by, ref string) error) error {
	if len(q.Refs) == 0 || q.Patients != nil && len(q.Patients) == 0 {
		return nil
	}
	at := instant(q.AsOf)
	var queries []query
	var by, ref string
	add := func(text string, args ...any) {
		queries = append(queries, query{
			"SELECT " + text, append([]any{q.Refs}, args...),
			func(values [][]byte) error { by, ref = string(values[0]), string(values[1]); return nil },
			func() error { return yield(by, ref) },
		})
	}
	if q.Patients != nil {
		// The server decides which of the three it begins with: few references may have many patients, or few of those asked for.
		last := len(q.Patients) - 1
		add(`m.by, m.ref FROM unnest($1::text[]) AS a (ref) CROSS JOIN unnest($2::text[]) AS p (patient)
			JOIN mention AS m ON m.ref = a.ref AND m.by = p.patient AND m.by BETWEEN $3 AND $4`,
			q.Patients, q.Patients[0], q.Patients[last])
	} else {
		// OFFSET 0 keeps the loop over the references outside.
		add(`m.by, a.ref FROM unnest($1::text[]) AS a (ref) CROSS JOIN unnest($2::text[]) AS p (type) CROSS JOIN LATERAL (
			SELECT by FROM mention AS m WHERE m.ref = a.ref AND m.by >= p.type || '/' AND m.by < p.type || '0' OFFSET 0) AS m`,
			referencedTypes())
		add(`t.type || '/' || t.id, a.ref FROM unnest($1::text[]) AS a (ref) CROSS JOIN LATERAL (
			SELECT by FROM mention AS m WHERE m.ref = a.ref AND m.by >= 'Provenance/' AND m.by < 'Provenance0' OFFSET 0) AS m
			CROSS JOIN LATERAL (SELECT type, id FROM target
				WHERE provenance = substr(m.by, length('Provenance/') + 1) OFFSET 0) AS t
			WHERE t.type = ANY($2)`, referencedTypes())
	}
	// Afterwards, because each query sees a state of its own, and the pairs may have been removed before the first.
	unknown := false
	queries = append(queries, query{
		"SELECT EXISTS (SELECT FROM load_batch WHERE sealed_at <= $1 AND mentions IS DISTINCT FROM $2)",
		[]any{at, source.Rules},
		func(values [][]byte) error { unknown = values[0][0] != 0; return nil },
		func() error {
			if unknown {
				return source.ErrMentionsUnknown
			}
			return nil
		},
	})
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error { return read(ctx, conn, "mentions", at, queries...) })
}

func referencedTypes() []string {
	return slices.DeleteFunc(fhir.ExportableTypes(), func(typ string) bool { return !fhir.IsReferenced(typ) })
}
