package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// stageSchema has the tables of the running load. They are unlogged: a crash of the server empties them, and the load
// fails.
const stageSchema = "sluice_stage"

// targetStage is the table of the targets of staged Provenance. The space keeps it apart from the tables of types.
const targetStage = "a target"

// targets is the quoted name of targetStage.
var targets = pgx.Identifier{stageSchema, targetStage}.Sanitize()

func stage(typ string) string {
	return pgx.Identifier{stageSchema, strings.ToLower(typ)}.Sanitize()
}

func (l *Load) makeStage(ctx context.Context) error {
	text := []string{
		"DROP SCHEMA IF EXISTS " + stageSchema + " CASCADE",
		"CREATE SCHEMA " + stageSchema,
		"CREATE UNLOGGED TABLE " + targets + ` (place bigint NOT NULL,
			provenance text COLLATE "C" NOT NULL, type text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL)`,
	}
	for _, typ := range fhir.ExportableTypes() {
		text = append(text, "CREATE UNLOGGED TABLE "+stage(typ)+` (last_updated timestamptz, place bigint NOT NULL,
			id text COLLATE "C" NOT NULL, patient text COLLATE "C" NOT NULL, others text[] COLLATE "C",
			head bytea NOT NULL, body text COMPRESSION lz4 COLLATE "C" NOT NULL)
			WITH (toast_tuple_target = 8160, autovacuum_enabled = false)`)
	}
	return pgx.BeginFunc(ctx, l.turn, func(tx pgx.Tx) error { return run(ctx, tx, text...) })
}

// Line is one resource to stage.
type Line struct {
	Place int64 // breaks ties: of versions with the same meta.lastUpdated the highest place wins
	Facts fhir.Facts
	Body  []byte
}

// Stage copies resources of one exportable type to the server. It may be called concurrently; each call takes a
// connection of the pool. After an error the load must be closed.
func (l *Load) Stage(ctx context.Context, typ string, lines []Line) error {
	if !fhir.IsExportable(typ) {
		return errNoType(typ)
	}
	var targeted [][]any
	if typ == "Provenance" {
		for _, line := range lines {
			for _, target := range line.Facts.Subjects {
				targeted = append(targeted, []any{line.Place, line.Facts.ID, target.Type, target.ID})
			}
		}
	}
	var resource source.Resource
	// In a step: after the turn was lost the tables belong to the next load.
	err := l.inStep(ctx, func(tx pgx.Tx) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{stageSchema, strings.ToLower(typ)},
			[]string{"last_updated", "place", "id", "patient", "others", "head", "body"},
			pgx.CopyFromSlice(len(lines), func(i int) ([]any, error) { return stageRow(lines[i], &resource), nil }))
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

// stageRow returns the row of a line. It reuses r.
func stageRow(line Line, r *source.Resource) []any {
	source.Read(r, line.Facts, line.Body)
	var updated, others any
	if !line.Facts.LastUpdated.IsZero() {
		updated = line.Facts.LastUpdated
	}
	patient := ""
	if r.Type != "Provenance" { // its patients are known only after all other types are merged
		if len(r.Subjects) > 0 {
			patient = r.Subjects[0]
		}
		if len(r.Subjects) > 1 {
			others = r.Subjects
		}
	}
	return []any{updated, line.Place, r.ID, patient, others, appendHead(nil, r), line.Body}
}
