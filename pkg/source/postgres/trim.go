package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// trim deletes the versions that ended before the kept history, and older deletions. It publishes the horizon before it
// deletes: a read that may have missed a row then finds the new horizon (trimmed).
func (l *Load) trim(ctx context.Context) error {
	const newest = "(SELECT coalesce(max(no), 0) FROM load_batch WHERE sealed_at < clock_timestamp() - make_interval(secs => "
	var horizon, deletions int32
	err := l.turn.QueryRow(ctx, "UPDATE trim_horizon SET load = greatest(load, "+newest+`$1))),
		deletions = greatest(deletions, `+newest+"$2))) RETURNING load, deletions",
		l.cfg.History.Seconds(), max(l.cfg.History, l.cfg.Deletions).Seconds()).Scan(&horizon, &deletions)
	if err != nil || horizon == 0 {
		return err
	}
	if _, err := l.turn.Exec(ctx, "DELETE FROM tombstone WHERE born <= $1", deletions); err != nil {
		return err
	}
	several, err := typesOfSeveral(ctx, l.turn)
	if err != nil {
		return err
	}
	for _, text := range append(trimSeveral(several, "ended <= $1", "r.ended IS NULL OR r.ended > $1"),
		`WITH gone AS (DELETE FROM resource_provenance WHERE ended <= $1 RETURNING id, born)
			DELETE FROM target AS t USING gone WHERE t.provenance = gone.id AND t.born = gone.born`,
		"DELETE FROM resource WHERE ended <= $1",
	) {
		if _, err := l.turn.Exec(ctx, text, horizon); err != nil {
			return err
		}
	}
	return nil
}

// typesOfSeveral returns the types with resources of several patients.
func typesOfSeveral(ctx context.Context, from querier) ([]string, error) {
	rows, _ := from.Query(ctx, "SELECT DISTINCT type FROM additional_subject") // rows returns the error
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// trimSeveral returns statements that delete the entries of additional_subject for versions that meet gone, unless a
// version that meets kept has the patient too.
func trimSeveral(types []string, gone, kept string) (statements []string) {
	for _, typ := range types {
		statements = append(statements, `DELETE FROM additional_subject AS a USING (
			SELECT DISTINCT id, unnest(others[2:]) AS patient FROM `+leaf(typ)+" WHERE others IS NOT NULL AND ("+gone+`)) AS g
			WHERE a.type = '`+typ+`' AND a.id = g.id AND a.patient = g.patient AND NOT EXISTS (
				SELECT FROM `+leaf(typ)+" AS r WHERE r.id = g.id AND g.patient = ANY(r.others) AND ("+kept+"))")
	}
	return statements
}
