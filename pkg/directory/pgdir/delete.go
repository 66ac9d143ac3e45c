package pgdir

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// delete deletes the groups, after Seal. A line of the load with a higher place than the deletion keeps its group.
func (l *Load) delete(ctx context.Context, tx pgx.Tx, deleted map[string]int64) error {
	ids, places := make([]string, 0, len(deleted)), make([]int64, 0, len(deleted))
	for id, place := range deleted {
		ids, places = append(ids, id), append(places, place)
	}
	_, err := tx.Exec(ctx, `WITH gone AS (
		DELETE FROM directory_group AS g USING unnest($1::text[], $2::bigint[]) AS d (id, place)
		WHERE g.id = d.id AND NOT EXISTS (SELECT FROM `+staged(l.groups)+` AS s WHERE s.id = d.id AND s.place > d.place)
		RETURNING g.id)
		DELETE FROM directory_member AS m USING gone WHERE m.group_id = gone.id`, ids, places)
	return wrap("delete groups", err)
}
