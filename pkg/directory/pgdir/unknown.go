package pgdir

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// selectUnknown returns a row without a value if the group can be exported, and the patients of the list $3 that are not
// members. OFFSET 0 makes the server look each one up by the index, however many members the group has.
const selectUnknown = `WITH RECURSIVE ` + reached + `
	SELECT NULL::text, 0::bigint AS n FROM reached WHERE id = $1
	UNION ALL SELECT asked.id, asked.n FROM unnest($3::text[]) WITH ORDINALITY AS asked (id, n)
		WHERE NOT EXISTS (SELECT FROM reached AS r JOIN directory_member AS m ON m.group_id = r.id
			WHERE r.exportable AND m.patient = asked.id AND ` + active + ` OFFSET 0)
	ORDER BY n`

// selectUnheld returns the patients of the list $1 that are no Patient as of the newest load. No load was sealed if the
// clinical data are elsewhere.
const selectUnheld = `WITH sealed AS (SELECT max(no) AS no FROM load_batch WHERE sealed_at IS NOT NULL)
	SELECT asked.id FROM sealed CROSS JOIN unnest($1::text[]) WITH ORDINALITY AS asked (id, n)
	WHERE sealed.no IS NOT NULL AND NOT EXISTS (SELECT FROM resource AS r
		WHERE r.type = 'Patient' AND r.id = asked.id AND r.born <= sealed.no AND (r.ended IS NULL OR r.ended > sealed.no)
		OFFSET 0)
	ORDER BY asked.n`

// Unknown implements directory.Groups. With the group "" no patient is unknown if the session may not read the clinical
// data, or if the database has none.
func (g *Groups) Unknown(ctx context.Context, groupID string, patients []string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if groupID == "" {
		return g.unheld(ctx, patients)
	}
	if !fhir.IsID(groupID) {
		return nil, directory.ErrNoGroup
	}
	rows, _ := g.pool.Query(ctx, selectUnknown, groupID, g.now(), patients) // rows returns the error
	found := false
	var patient *string
	var unknown []string
	_, err := pgx.ForEachRow(rows, []any{&patient, nil}, func() error {
		if patient == nil {
			found = true
		} else {
			unknown = append(unknown, *patient)
		}
		return nil
	})
	if err == nil && !found {
		return nil, directory.ErrNoGroup
	}
	return unknown, wrap("look up patients in group "+groupID, err)
}

func (g *Groups) unheld(ctx context.Context, patients []string) ([]string, error) {
	const act = "look up patients"
	var mayRead bool
	err := g.pool.QueryRow(ctx, "SELECT "+mayReadPatients).Scan(&mayRead)
	if err != nil || !mayRead {
		return nil, wrap(act, err)
	}
	rows, _ := g.pool.Query(ctx, selectUnheld, patients) // rows returns the error
	unknown, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return unknown, wrap(act, err)
}
