package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// stageSchema has the tables of the running load. They are unlogged: a crash of the server empties them, and the load
// fails.
const stageSchema = "sluice_stage"

// The tables of the targets of staged Provenance and of deletions. The space keeps them apart from the tables of types.
const (
	targetStage   = "a target"
	deletionStage = "a deletion"
)

// The quoted names of these tables.
var (
	targets   = pgx.Identifier{stageSchema, targetStage}.Sanitize()
	deletions = pgx.Identifier{stageSchema, deletionStage}.Sanitize()
)

// refused is the condition for a staged row s to be a version that is not loaded.
const refused = "octet_length(s.head) = 0"

func stage(typ string) string {
	return pgx.Identifier{stageSchema, strings.ToLower(typ)}.Sanitize()
}

// makeSchema creates the schema of the load, without the tables of types.
func (l *Load) makeSchema(ctx context.Context) error {
	return pgx.BeginFunc(ctx, l.turn, func(tx pgx.Tx) error {
		return run(ctx, tx,
			"DROP SCHEMA IF EXISTS "+stageSchema+" CASCADE",
			"CREATE SCHEMA "+stageSchema,
			"CREATE UNLOGGED TABLE "+targets+` (place bigint NOT NULL,
				provenance text COLLATE "C" NOT NULL, type text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL)`,
			"CREATE UNLOGGED TABLE "+deletions+` (place bigint NOT NULL,
				type text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL)`)
	})
}

// makeStage creates the table of a type, once. Most loads have few of the types, and the server syncs each new table.
func (l *Load) makeStage(ctx context.Context, typ string) error {
	l.making.Lock()
	defer l.making.Unlock()
	if l.made[typ] {
		return nil
	}
	err := l.inStep(ctx, func(tx pgx.Tx) error {
		return run(ctx, tx, "CREATE UNLOGGED TABLE "+stage(typ)+` (last_updated timestamptz, version bigint,
			place bigint NOT NULL, id text COLLATE "C" NOT NULL, patient text COLLATE "C" NOT NULL, others text[] COLLATE "C",
			left_out text COLLATE "C", head bytea NOT NULL, body text COMPRESSION lz4 COLLATE "C" NOT NULL,
			codes bigint, dated_from int, dated_to int, sketch_rules int)
			WITH (toast_tuple_target = 8160, autovacuum_enabled = false)`)
	})
	l.made[typ] = err == nil
	return err
}

// Line is one resource to stage.
type Line struct {
	Place int64 // breaks ties: of versions with the same meta.lastUpdated the highest place wins
	Facts fhir.Facts
	Body  []byte // nil: the version is not loaded (source.Refused), and no older one may be served instead
}

// Deletion is one resource to delete. Versions of the load with a lower place are not loaded.
type Deletion struct {
	Place int64
	Ref   fhir.Ref // of a stored type (fhir.IsStored)
}

// Stage copies resources of one stored type (fhir.IsStored) to the server. It may be called concurrently; each call takes a
// connection of the pool. After an error the load must be closed.
func (l *Load) Stage(ctx context.Context, typ string, lines []Line) error {
	if !fhir.IsStored(typ) {
		return errNoType(typ)
	}
	var targeted [][]any
	if typ == "Provenance" {
		for _, line := range lines {
			for _, target := range line.Facts.Subjects {
				targeted = append(targeted, []any{line.Place, line.Facts.ID, target.Type, target.ID})
			}
			if line.Facts.Unresolved+line.Facts.Foreign+line.Facts.Invalid > 0 {
				targeted = append(targeted, []any{line.Place, line.Facts.ID, source.Somebody, source.Somebody})
			}
		}
	}
	if err := l.makeStage(ctx, typ); err != nil {
		return pgdb.Wrap("stage "+typ, err)
	}
	var resource source.Resource
	sketcher := typefilter.NewSketcher(typ)
	// In a step: after the turn was lost the tables belong to the next load.
	err := l.inStep(ctx, func(tx pgx.Tx) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{stageSchema, strings.ToLower(typ)},
			append([]string{"last_updated", "version", "place", "id", "patient", "others", "left_out", "head", "body"},
				strings.Split(sketchColumns, ", ")...),
			pgx.CopyFromSlice(len(lines), func(i int) ([]any, error) { return stageRow(lines[i], &resource, sketcher), nil }))
		if err != nil || len(targeted) == 0 {
			return err
		}
		_, err = tx.CopyFrom(ctx, pgx.Identifier{stageSchema, targetStage},
			[]string{"place", "provenance", "type", "id"}, pgx.CopyFromRows(targeted))
		return err
	})
	if err != nil {
		return pgdb.Wrap("stage "+typ, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.staged[typ] += int64(len(lines))
	l.targets += int64(len(targeted))
	return nil
}

// Delete stages deletions. It may be called concurrently, also with Stage.
func (l *Load) Delete(ctx context.Context, list []Deletion) error {
	if len(list) == 0 {
		return nil
	}
	err := l.inStep(ctx, func(tx pgx.Tx) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{stageSchema, deletionStage}, []string{"place", "type", "id"},
			pgx.CopyFromSlice(len(list), func(i int) ([]any, error) {
				return []any{list[i].Place, list[i].Ref.Type, list[i].Ref.ID}, nil
			}))
		return err
	})
	if err != nil {
		return pgdb.Wrap("stage deletions", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, deletion := range list {
		l.deleted[deletion.Ref.Type]++
	}
	return nil
}

// stageRow returns the row of a line. It reuses r.
func stageRow(line Line, r *source.Resource, sketcher *typefilter.Sketcher) []any {
	var updated, version, others, leftOut any
	if !line.Facts.LastUpdated.IsZero() {
		updated = line.Facts.LastUpdated
	}
	if line.Facts.Version > 0 {
		version = line.Facts.Version
	}
	if line.Body == nil {
		return []any{updated, version, line.Place, line.Facts.ID, "", nil, nil, []byte{}, "", nil, nil, nil, nil}
	}
	source.Read(r, line.Facts, line.Body)
	patient := ""
	// The patients of a Provenance are known only after all other types are merged.
	if r.Type != "Provenance" && fhir.InCompartment(r.Type) {
		switch {
		case len(r.Named) == 0:
			leftOut = string(source.Homeless(line.Facts))
		case len(r.Named) == 1:
			patient = r.Named[0]
		default:
			patient, others = r.Named[0], r.Named
		}
	}
	row := []any{updated, version, line.Place, r.ID, patient, others, leftOut, appendHead(nil, r), line.Body}
	return append(row, sketchRow(sketcher.Sketch(line.Body))...)
}
