package postgres

import "context"

// trim deletes the versions that ended before the kept history. It publishes the horizon before it deletes: a read that
// may have missed a row then finds the new horizon (trimmed).
func (l *Load) trim(ctx context.Context) error {
	var horizon int32
	err := l.turn.QueryRow(ctx, `UPDATE trim_horizon SET load = greatest(load, (SELECT coalesce(max(no), 0) FROM load_batch
		WHERE sealed_at < clock_timestamp() - make_interval(secs => $1))) RETURNING load`,
		l.cfg.History.Seconds()).Scan(&horizon)
	if err != nil || horizon == 0 {
		return err
	}
	for _, text := range []string{
		`WITH gone AS (DELETE FROM resource_provenance WHERE ended <= $1 RETURNING id, born)
			DELETE FROM target AS t USING gone WHERE t.provenance = gone.id AND t.born = gone.born`,
		"DELETE FROM resource WHERE ended <= $1",
	} {
		if _, err := l.turn.Exec(ctx, text, horizon); err != nil {
			return err
		}
	}
	return nil
}
