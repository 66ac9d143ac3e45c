package pgdir

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory/internal/groupndjson"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// A Problem is the error of an unreadable line, without its content. The load continues without the line.
type Problem struct{ error }

// Added is a Group resource that was read.
type Added struct {
	ID      string           // "" if it is unknown
	LeftOut []export.LeftOut // the number of active members that are no patients of this store, by reason
}

// Load adds Group resources to the directory. Add copies them into unlogged tables of the load, Seal makes all of them
// effective at once. A load that was not sealed has no effect. Close ends a load in either case; the next load drops
// the tables of a killed one.
type Load struct {
	pool    *pgxpool.Pool
	turn    *pgdb.Turn // until Close
	groups  string     // name of the table in stageSchema
	members string

	staged   atomic.Int64 // rows of the table of groups
	problems atomic.Int64
}

// stageSchema has the tables of the running load.
const stageSchema = "directory_stage"

// turnLock is the advisory lock of the running load.
const turnLock = 0x736c7569636533 // "sluice3"

// BeginLoad drops the tables of killed loads and begins a new load. It returns pgdb.ErrBusy when another one runs. Until
// Close the load has one connection besides those of the pool, and each running Add takes one of the pool.
func BeginLoad(ctx context.Context, pool *pgxpool.Pool) (_ *Load, err error) {
	// Unique names: a load that lost its turn cannot write into the tables of the next one.
	suffix := strings.ToLower(rand.Text())
	l := &Load{pool: pool, groups: "group_" + suffix, members: "member_" + suffix}
	if l.turn, err = pgdb.TakeTurn(ctx, pool, turnLock); err != nil {
		return nil, wrap("begin the load of groups", err)
	}
	_, err = l.turn.Exec(ctx, strings.Join([]string{
		"DROP SCHEMA IF EXISTS " + stageSchema + " CASCADE",
		"CREATE SCHEMA " + stageSchema,
		"CREATE UNLOGGED TABLE " + staged(l.groups) + ` (place bigint NOT NULL, id text COLLATE "C" NOT NULL,
			exportable boolean NOT NULL, last_updated timestamptz, version bigint, readable boolean NOT NULL,
			name text, identifiers jsonb, quantity bigint)`,
		"CREATE UNLOGGED TABLE " + staged(l.members) + ` (place bigint NOT NULL, kind text COLLATE "C" NOT NULL,
			member text COLLATE "C" NOT NULL, starts timestamptz NOT NULL, ends timestamptz NOT NULL, inactive boolean NOT NULL)
			WITH (autovacuum_enabled = false)`,
	}, ";"))
	if err != nil {
		return nil, errors.Join(wrap("begin the load of groups", err), l.Close(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func staged(table string) string { return pgx.Identifier{stageSchema, table}.Sanitize() }

// Add stages one Group resource, a line without its newline. It returns a *Problem for a malformed line, of which it
// stages nothing but its version; after any other error close the load. Add may be called concurrently, and does not hold
// the members in memory. Of two equal versions the one with the higher place wins; each line has its own place.
func (l *Load) Add(ctx context.Context, place int64, line []byte) (Added, error) {
	if !utf8.Valid(line) {
		l.problems.Add(1)
		return Added{}, errUTF8
	}
	var malformed error // the defect of the line
	var leftOut export.Tally
	var header groupndjson.Header
	now := time.Now()
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		next, stop := iter.Pull(func(yield func([]any) bool) {
			var ended bool
			header, malformed = groupndjson.Read(bytes.NewReader(line), func(m groupndjson.Member) error {
				row, err := stagedMember(place, m, now, &leftOut)
				if err == nil && !yield(row) {
					ended = true
					return io.ErrClosedPipe
				}
				return err
			})
			if ended {
				malformed = nil
			}
		})
		defer stop()
		_, err := tx.CopyFrom(ctx, pgx.Identifier{stageSchema, l.members},
			[]string{"place", "kind", "member", "starts", "ends", "inactive"}, pgx.CopyFromFunc(func() ([]any, error) {
				row, more := next()
				if !more {
					return nil, malformed
				}
				return row, nil
			}))
		if err != nil {
			return err
		}
		return l.stage(ctx, tx, place, header, true)
	})
	switch {
	case errors.Is(malformed, io.EOF):
		l.problems.Add(1)
		return Added{}, errBlank
	case malformed != nil:
		l.problems.Add(1)
		// The first read ended at the defect. What it did not read may have the id.
		header, _ := groupndjson.Read(bytes.NewReader(line), func(groupndjson.Member) error { return nil })
		if header.ID == "" {
			return Added{}, &Problem{malformed}
		}
		err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error { return l.stage(ctx, tx, place, header, false) })
		if err != nil {
			return Added{}, wrap("stage a group", err)
		}
		return Added{ID: header.ID}, &Problem{malformed}
	case err != nil:
		return Added{}, wrap("stage a group", err)
	}
	return Added{header.ID, leftOut.List()}, nil
}

var (
	errUTF8  = &Problem{errors.New("not valid UTF-8")}
	errBlank = &Problem{errors.New("a blank line")}
)

// Examine returns what Add would return, without a database.
func Examine(line []byte) (Added, error) {
	if !utf8.Valid(line) {
		return Added{}, errUTF8
	}
	var malformed error
	var leftOut export.Tally
	now := time.Now()
	header, err := groupndjson.Read(bytes.NewReader(line), func(m groupndjson.Member) error {
		_, err := stagedMember(0, m, now, &leftOut)
		malformed = cmp.Or(malformed, err)
		return nil
	})
	switch err = cmp.Or(err, malformed); {
	case errors.Is(err, io.EOF):
		return Added{}, errBlank
	case err != nil:
		return Added{ID: header.ID}, &Problem{err}
	}
	return Added{header.ID, leftOut.List()}, nil
}

// stage stages a group without its members.
func (l *Load) stage(ctx context.Context, tx pgx.Tx, place int64, header groupndjson.Header, readable bool) error {
	lastUpdated := pgtype.Timestamptz{Time: header.LastUpdated, Valid: !header.LastUpdated.IsZero()}
	name, identifiers := described(header.Name, header.Identifiers)
	_, err := tx.Exec(ctx, "INSERT INTO "+staged(l.groups)+` (place, id, exportable, last_updated, version, readable,
			name, identifiers, quantity) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		place, header.ID, header.Exportable, lastUpdated, header.Number, readable, name, identifiers, header.Quantity)
	if err == nil {
		l.staged.Add(1)
	}
	return err
}

// Kinds of staged members. The others are reasons why a member is left out.
const (
	memberPatient = "patient"
	memberGroup   = "group"
)

// stagedMember returns the row of a member, and counts it if it is active and left out.
func stagedMember(place int64, m groupndjson.Member, now time.Time, leftOut *export.Tally) (row []any, err error) {
	from, until, err := m.Period.Span()
	if err != nil {
		return nil, err
	}
	// A load resolves references before they get here.
	member, reason := groupndjson.Resolver{}.Resolve(m)
	kind := string(reason)
	switch {
	case reason != "":
		if active, _ := m.Covers(now); active {
			leftOut.Add("", reason, 1)
		}
	case member.Type == "Group":
		kind = memberGroup
	default:
		kind = memberPatient
	}
	starts := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	ends := pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	// The server has microseconds: round the period inwards.
	if from != nil {
		starts = pgtype.Timestamptz{Time: from.Add(time.Microsecond - 1).Truncate(time.Microsecond), Valid: true}
	}
	if until != nil {
		ends = pgtype.Timestamptz{Time: until.Truncate(time.Microsecond), Valid: true}
	}
	return []any{place, kind, member.ID, starts, ends, m.Inactive}, nil
}

// Seal makes the staged groups effective when the caller's transaction commits. It does not write unchanged members. A
// group whose newest version in the load cannot be read stays as it is. deleted has the place of the last deletion of each
// group that the load deletes: of such a group only the lines with a higher place count, whatever their versions are. With
// deleteMissing it deletes the groups that are not in the load, unless the load has no groups. Other writers of
// groups wait until the transaction ends; readers do not.
func (l *Load) Seal(ctx context.Context, tx pgx.Tx, deleteMissing bool, deleted map[string]int64) error {
	if deleteMissing && l.problems.Load() > 0 {
		return errors.New("some groups cannot be read, so the missing ones are unknown")
	}
	if l.staged.Load() == 0 && len(deleted) == 0 {
		return nil
	}
	if err := pgdb.CheckStaged(ctx, tx, staged(l.groups), l.staged.Load()); err != nil {
		return wrap("merge groups", err)
	}
	if _, err := tx.Exec(ctx, `CREATE TEMPORARY TABLE directory_deleted
		(id text COLLATE "C" PRIMARY KEY, place bigint NOT NULL) ON COMMIT DROP`); err != nil {
		return wrap("delete groups", err)
	}
	ids := slices.Collect(maps.Keys(deleted))
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"directory_deleted"}, []string{"id", "place"},
		pgx.CopyFromSlice(len(ids), func(i int) ([]any, error) { return []any{ids[i], deleted[ids[i]]}, nil }))
	if err != nil {
		return wrap("delete groups", err)
	}
	_, err = tx.Exec(ctx, strings.Join(l.merge(deleteMissing && l.staged.Load() > 0), ";"))
	return wrap("merge groups", err)
}

// Sealing returns a function that calls Seal in the transaction of another load, so that both take effect at once.
func (l *Load) Sealing(deleteMissing bool, deleted map[string]int64) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error { return l.Seal(ctx, tx, deleteMissing, deleted) }
}

// merge returns the statements of Seal.
func (l *Load) merge(deleteMissing bool) []string {
	groups, members := staged(l.groups), staged(l.members)
	steps := []string{
		"LOCK TABLE directory_group IN EXCLUSIVE MODE",
		"DELETE FROM " + groups + " AS s USING directory_deleted AS d WHERE s.id = d.id AND s.place < d.place",
		// Keep the newest version of each group: by number if all have one, else by time, else the later one. One that cannot
		// be read is the newest if its time is unknown, and is not merged.
		"DELETE FROM " + groups + ` AS s USING (SELECT place, row_number() OVER (PARTITION BY id ORDER BY
				CASE WHEN numbered THEN version END DESC, (NOT readable AND last_updated IS NULL) DESC,
				last_updated DESC NULLS LAST, place DESC) AS rank
			FROM (SELECT *, bool_and(version IS NOT NULL) OVER (PARTITION BY id) AS numbered FROM ` + groups + `) AS v) AS d
			WHERE s.place = d.place AND d.rank > 1`,
		"DELETE FROM " + groups + " WHERE NOT readable",
	}
	if deleteMissing {
		steps = append(steps, `WITH gone AS (DELETE FROM directory_group AS g
			WHERE NOT EXISTS (SELECT FROM `+groups+` AS s WHERE s.id = g.id) RETURNING g.id)
			DELETE FROM directory_member AS m USING gone WHERE m.group_id = gone.id`)
	}
	return append(steps,
		`WITH gone AS (DELETE FROM directory_group AS g USING directory_deleted AS d
			WHERE g.id = d.id AND NOT EXISTS (SELECT FROM `+groups+` AS s WHERE s.id = g.id) RETURNING g.id)
			DELETE FROM directory_member AS m USING gone WHERE m.group_id = gone.id`,
		// Keep a newer version that is already in the directory, unless it was deleted.
		"DELETE FROM "+groups+` AS s USING directory_group AS g WHERE g.id = s.id
			AND NOT EXISTS (SELECT FROM directory_deleted AS d WHERE d.id = s.id)
			AND CASE WHEN g.version <> s.version THEN g.version > s.version
				ELSE coalesce(g.last_updated, '-infinity') > coalesce(s.last_updated, '-infinity') END`,
		"ANALYZE "+groups, "ANALYZE "+members,
		// Members and groups of groups that the directory has, before the change.
		`CREATE TEMPORARY TABLE directory_known ON COMMIT DROP AS
			SELECT g.id FROM directory_group AS g JOIN `+groups+" AS s USING (id)",
		`CREATE TEMPORARY TABLE directory_link ON COMMIT DROP AS
			SELECT o.* FROM directory_subgroup AS o JOIN `+groups+" AS s ON s.id = o.group_id",
		`INSERT INTO directory_group AS g (id, exportable, last_updated, version, name, identifiers, quantity)
			SELECT id, exportable, last_updated, version, name, identifiers, quantity FROM `+groups+` ORDER BY id
			ON CONFLICT (id) DO UPDATE SET exportable = excluded.exportable, last_updated = excluded.last_updated,
				version = excluded.version, name = excluded.name, identifiers = excluded.identifiers, quantity = excluded.quantity
			WHERE (g.exportable, g.last_updated, g.version, g.name, g.identifiers, g.quantity) IS DISTINCT FROM
				(excluded.exportable, excluded.last_updated, excluded.version, excluded.name, excluded.identifiers, excluded.quantity)`,
		// Insert before the delete, to keep the time at which the patient joined. Ordered, because a group is read as a range.
		`INSERT INTO directory_member (group_id, patient, starts, ends, inactive, joined, active_since)
			SELECT n.*, coalesce((SELECT min(o.joined) FROM directory_member AS o
				WHERE o.group_id = n.id AND o.patient = n.member), clock_timestamp()), `+
			activeSince("directory_member AS o WHERE o.group_id = n.id AND o.patient = n.member")+`
			FROM (SELECT DISTINCT s.id, m.member, m.starts, m.ends, m.inactive
				FROM `+groups+" AS s JOIN "+members+` AS m USING (place)
				WHERE m.kind = 'patient' AND NOT EXISTS (SELECT FROM directory_member AS o WHERE o.group_id = s.id
					AND o.patient = m.member AND o.starts = m.starts AND o.ends = m.ends AND o.inactive = m.inactive)
				ORDER BY 1, 2) AS n`,
		"DELETE FROM directory_member AS o USING "+groups+` AS s WHERE o.group_id = s.id
			AND NOT EXISTS (SELECT FROM `+members+` AS m WHERE m.place = s.place AND m.kind = 'patient'
				AND m.member = o.patient AND m.starts = o.starts AND m.ends = o.ends AND m.inactive = o.inactive)`,
		"DELETE FROM directory_subgroup AS o USING "+groups+" AS s WHERE o.group_id = s.id",
		`INSERT INTO directory_subgroup (group_id, member, starts, ends, inactive, active_since)
			SELECT n.*, `+activeSince("directory_link AS o WHERE o.group_id = n.id AND o.member = n.member")+`
			FROM (SELECT DISTINCT s.id, m.member, m.starts, m.ends, m.inactive
				FROM `+groups+" AS s JOIN "+members+" AS m USING (place) WHERE m.kind = 'group') AS n",
		"DELETE FROM directory_left_out AS o USING "+groups+" AS s WHERE o.group_id = s.id",
		`INSERT INTO directory_left_out (group_id, reason, starts, ends, inactive, members)
			SELECT s.id, m.kind, m.starts, m.ends, m.inactive, count(*)
			FROM `+groups+" AS s JOIN "+members+` AS m USING (place) WHERE m.kind NOT IN ('patient', 'group')
			GROUP BY s.id, m.kind, m.starts, m.ends, m.inactive`,
	)
}

// activeSince is the value of active_since in a row of the group n.id: null in a new group, the time of the member's rows o
// that are active now, or now.
func activeSince(rows string) string {
	return `CASE WHEN EXISTS (SELECT FROM directory_known AS k WHERE k.id = n.id) THEN coalesce(
		(SELECT min(greatest(o.active_since, o.starts)) FROM ` + rows + ` AND NOT o.inactive
			AND o.starts <= clock_timestamp() AND o.ends > clock_timestamp()), clock_timestamp()) END`
}

// Close drops the staged rows and ends the turn. A load that was not sealed has no effect.
func (l *Load) Close(ctx context.Context) error {
	if l.turn == nil {
		return nil
	}
	turn := l.turn
	l.turn = nil
	// Drop only the tables of this load: if its session was lost, another load may be running.
	return wrap("close the load of groups", turn.End(ctx, "DROP TABLE IF EXISTS "+staged(l.groups)+", "+staged(l.members)))
}
