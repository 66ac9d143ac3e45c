package pgdir

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// ErrBusy says that another load of groups is under way.
var ErrBusy = errors.New("another load of groups is under way")

// A Problem is what is wrong with a line. It holds nothing of the line. A load goes on without the line.
type Problem struct{ text string }

// Error says what is wrong.
func (p *Problem) Error() string { return p.text }

// Load brings Group resources into the directory: Add takes them into unlogged tables of the load's own, Seal makes
// them count, all at once. What is not sealed is seen by nobody. Close ends either; what a load leaves that is killed,
// the next one drops.
type Load struct {
	pool    *pgxpool.Pool
	turn    *pgxpool.Conn // holds the turn until Close
	groups  string        // name of the table in stageSchema
	members string

	added    atomic.Int64
	problems atomic.Int64
}

// stageSchema holds the tables of the load that is under way.
const stageSchema = "directory_stage"

// turnLock is held by the session of the one load that is under way.
const turnLock = 0x736c7569636533 // "sluice3"

// BeginLoad takes the turn, drops what killed loads have left, and begins a new one. ErrBusy says that it is another's
// turn. The load keeps one connection of the pool until Close, and another one for each Add that runs.
func BeginLoad(ctx context.Context, pool *pgxpool.Pool) (_ *Load, err error) {
	var name [8]byte
	_, _ = rand.Read(name[:]) // it never fails
	// Names that no other load has: one that lost its turn finds nothing to write to.
	l := &Load{pool: pool, groups: "group_" + hex.EncodeToString(name[:]), members: "member_" + hex.EncodeToString(name[:])}
	if l.turn, err = pool.Acquire(ctx); err != nil {
		return nil, wrap("connect to the directory", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.endTurn(context.WithoutCancel(ctx)))
		}
	}()
	var mine bool
	if err := l.turn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(turnLock)).Scan(&mine); err != nil {
		return nil, wrap("begin the load of groups", err)
	}
	if !mine {
		return nil, ErrBusy
	}
	_, err = l.turn.Exec(ctx, strings.Join([]string{
		"DROP SCHEMA IF EXISTS " + stageSchema + " CASCADE",
		"CREATE SCHEMA " + stageSchema,
		"CREATE UNLOGGED TABLE " + staged(l.groups) + ` (place bigint NOT NULL, id text COLLATE "C" NOT NULL,
			exportable boolean NOT NULL, last_updated timestamptz)`,
		"CREATE UNLOGGED TABLE " + staged(l.members) + ` (place bigint NOT NULL, patient text COLLATE "C" NOT NULL,
			starts timestamptz NOT NULL, ends timestamptz NOT NULL, inactive boolean NOT NULL)
			WITH (autovacuum_enabled = false)`,
	}, ";"))
	if err != nil {
		return nil, wrap("begin the load of groups", err)
	}
	return l, nil
}

func staged(table string) string { return pgx.Identifier{stageSchema, table}.Sanitize() }

// Add takes one Group resource, a line without its newline. A *Problem says what is wrong with a line of which nothing
// is taken; after any other error the load is to be closed. Add may be called from several goroutines, and holds none of
// the members. Of two lines with one meta.lastUpdated the one with the higher place counts; each line has a place of its
// own.
func (l *Load) Add(ctx context.Context, place int64, line []byte) error {
	var scanner fhir.Scanner
	facts, err := scanner.Scan(line)
	if err != nil {
		return l.problem(err)
	}
	var wrong error // with the line
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		var header groupndjson.Header
		next, stop := iter.Pull(func(yield func([]any) bool) {
			var ended bool
			header, wrong = groupndjson.Read(bytes.NewReader(line), func(m groupndjson.Member) error {
				row, err := stagedMember(place, m)
				if row != nil && !yield(row) {
					ended = true
					return io.ErrClosedPipe
				}
				return err
			})
			if ended {
				wrong = nil
			}
		})
		defer stop()
		_, err := tx.CopyFrom(ctx, pgx.Identifier{stageSchema, l.members},
			[]string{"place", "patient", "starts", "ends", "inactive"}, pgx.CopyFromFunc(func() ([]any, error) {
				row, more := next()
				if !more {
					return nil, wrong
				}
				return row, nil
			}))
		if err != nil {
			return err
		}
		var lastUpdated *time.Time
		if !facts.LastUpdated.IsZero() {
			lastUpdated = &facts.LastUpdated
		}
		_, err = tx.Exec(ctx, "INSERT INTO "+staged(l.groups)+" (place, id, exportable, last_updated) VALUES ($1, $2, $3, $4)",
			place, header.ID, header.Exportable, lastUpdated)
		return err
	})
	switch {
	case wrong != nil:
		return l.problem(wrong)
	case err != nil:
		return wrap("stage a group", err)
	}
	l.added.Add(1)
	return nil
}

func (l *Load) problem(err error) error {
	l.problems.Add(1)
	return &Problem{text: err.Error()}
}

// stagedMember is the row of a member, nil for one that is no patient.
func stagedMember(place int64, m groupndjson.Member) ([]any, error) {
	from, until, err := m.Period.Span()
	if err != nil {
		return nil, err
	}
	patient, ok := m.Patient()
	if !ok {
		return nil, nil
	}
	starts := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	ends := pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	// The server counts microseconds. What lies between two of them is not covered.
	if from != nil {
		starts = pgtype.Timestamptz{Time: from.Add(time.Microsecond - 1).Truncate(time.Microsecond), Valid: true}
	}
	if until != nil {
		ends = pgtype.Timestamptz{Time: until.Truncate(time.Microsecond), Valid: true}
	}
	return []any{place, patient, starts, ends, m.Inactive}, nil
}

// Seal makes what was added count when the caller's transaction ends well. What stays as it is is not written. With
// deleteMissing groups that no line brought are deleted; a load without any group is taken for one that is not about
// groups and deletes none. Other writers of groups wait until the transaction ends, readers do not.
func (l *Load) Seal(ctx context.Context, tx pgx.Tx, deleteMissing bool) error {
	if deleteMissing && l.problems.Load() > 0 {
		return errors.New("some groups cannot be read, so nobody knows which are missing")
	}
	if l.added.Load() == 0 {
		return nil
	}
	// A crash of the server empties unlogged tables.
	var kept int64
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+staged(l.groups)).Scan(&kept); err != nil {
		return wrap("merge groups", err)
	}
	if kept != l.added.Load() {
		return fmt.Errorf("merge groups: %d of %d staged ones are left", kept, l.added.Load())
	}
	for _, step := range l.merge(deleteMissing) {
		// Nothing is cached: the statements name tables that are gone afterwards.
		if _, err := tx.Exec(ctx, step, pgx.QueryExecModeExec); err != nil {
			return wrap("merge groups", err)
		}
	}
	return nil
}

// Sealing returns Seal for the transaction in which another load seals, so that both show at once.
func (l *Load) Sealing(deleteMissing bool) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error { return l.Seal(ctx, tx, deleteMissing) }
}

// merge returns the statements of Seal.
func (l *Load) merge(deleteMissing bool) []string {
	groups, members := staged(l.groups), staged(l.members)
	steps := []string{
		"LOCK TABLE directory_group IN EXCLUSIVE MODE",
		// Of one group the newest version, on a tie the one that came later.
		"DELETE FROM " + groups + ` AS s USING (SELECT place, row_number() OVER (
			PARTITION BY id ORDER BY last_updated DESC NULLS LAST, place DESC) AS rank FROM ` + groups + `) AS d
			WHERE s.place = d.place AND d.rank > 1`,
	}
	if deleteMissing {
		steps = append(steps, `WITH gone AS (DELETE FROM directory_group AS g
			WHERE NOT EXISTS (SELECT FROM `+groups+` AS s WHERE s.id = g.id) RETURNING g.id)
			DELETE FROM directory_member AS m USING gone WHERE m.group_id = gone.id`)
	}
	return append(steps,
		// What the directory holds of a newer version stays.
		"DELETE FROM "+groups+` AS s USING directory_group AS g WHERE g.id = s.id
			AND coalesce(g.last_updated, '-infinity') > coalesce(s.last_updated, '-infinity')`,
		"ANALYZE "+groups, "ANALYZE "+members,
		`INSERT INTO directory_group AS g (id, exportable, last_updated)
			SELECT id, exportable, last_updated FROM `+groups+` ORDER BY id
			ON CONFLICT (id) DO UPDATE SET exportable = excluded.exportable, last_updated = excluded.last_updated
			WHERE (g.exportable, g.last_updated) IS DISTINCT FROM (excluded.exportable, excluded.last_updated)`,
		// Those who come first, as they take over when the patient joined. In order: a group is read as one range.
		`INSERT INTO directory_member (group_id, patient, starts, ends, inactive, joined)
			SELECT n.*, coalesce((SELECT min(o.joined) FROM directory_member AS o
				WHERE o.group_id = n.id AND o.patient = n.patient), clock_timestamp())
			FROM (SELECT DISTINCT s.id, m.patient, m.starts, m.ends, m.inactive
				FROM `+groups+" AS s JOIN "+members+` AS m USING (place)
				WHERE NOT EXISTS (SELECT FROM directory_member AS o WHERE o.group_id = s.id AND o.patient = m.patient
					AND o.starts = m.starts AND o.ends = m.ends AND o.inactive = m.inactive)
				ORDER BY 1, 2) AS n`,
		"DELETE FROM directory_member AS o USING "+groups+` AS s WHERE o.group_id = s.id
			AND NOT EXISTS (SELECT FROM `+members+` AS m WHERE m.place = s.place AND m.patient = o.patient
				AND m.starts = o.starts AND m.ends = o.ends AND m.inactive = o.inactive)`,
	)
}

// Close drops what is staged and gives up the turn. A load that was not sealed is gone with it.
func (l *Load) Close(ctx context.Context) error {
	if l.turn == nil {
		return nil
	}
	// Only what is its own: when the session was lost, another load may be under way.
	_, err := l.turn.Exec(ctx, "DROP TABLE IF EXISTS "+staged(l.groups)+", "+staged(l.members))
	return errors.Join(wrap("close the load of groups", err), l.endTurn(ctx))
}

// endTurn gives up the turn. The server does so itself some time after a session ends, which is too late for a load that
// follows at once.
func (l *Load) endTurn(ctx context.Context) error {
	turn := l.turn
	l.turn = nil
	_, err := turn.Exec(ctx, "SELECT pg_advisory_unlock_all()")
	if err == nil {
		turn.Release()
		return nil
	}
	session := turn.Hijack()
	return wrap("close the load of groups", errors.Join(err, session.Close(ctx)))
}
