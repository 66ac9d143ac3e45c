package pgdb

import (
	"context"
	"time"
)

// Facts describes a database from the view of one of its users.
type Facts struct {
	Version  string        // such as 15.14
	Encoding string        // of the server; must be UTF8
	Clock    time.Time     // about half of Latency ago
	Latency  time.Duration // of one query
	Hidden   []string      // tables that the user may not read; none before the migration
}

// Examine reads the facts of a database. It writes nothing.
func Examine(ctx context.Context, cfg Config) (Facts, error) {
	const act = "examine the database"
	cfg.Connections = 1
	pool, err := Open(ctx, cfg)
	if err != nil {
		return Facts{}, err
	}
	defer pool.Close()
	if err := pool.Ping(ctx); err != nil { // connecting is not part of the latency
		return Facts{}, Wrap(act, err)
	}
	var facts Facts
	begun := time.Now()
	if err := pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&facts.Clock); err != nil {
		return Facts{}, Wrap(act, err)
	}
	facts.Latency, facts.Clock = time.Since(begun), facts.Clock.UTC()
	err = pool.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_encoding'),
		array(SELECT relname::text FROM pg_class
			WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
				AND NOT has_table_privilege(oid, 'SELECT') ORDER BY relname)`,
	).Scan(&facts.Version, &facts.Encoding, &facts.Hidden)
	return facts, Wrap(act, err)
}

// CheckSchema is Check without a pool.
func CheckSchema(ctx context.Context, cfg Config) error {
	cfg.Connections = 2 // goose holds one
	pool, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	return Check(ctx, pool)
}
