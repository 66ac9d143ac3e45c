package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// stageSchema has the tables of the load that runs. They are unlogged: a crash of the server empties them, and the load
// fails.
const stageSchema = "sluice_stage"

// targetStage is the table of the targets of staged Provenance. The space keeps it apart from the tables of types.
const targetStage = "a target"

func stage(typ string) string {
	return pgx.Identifier{stageSchema, strings.ToLower(typ)}.Sanitize()
}

func (l *Load) makeStage(ctx context.Context) error {
	return pgx.BeginFunc(ctx, l.turn, func(tx pgx.Tx) error {
		text := []string{
			"DROP SCHEMA IF EXISTS " + stageSchema + " CASCADE",
			"CREATE SCHEMA " + stageSchema,
			"CREATE UNLOGGED TABLE " + pgx.Identifier{stageSchema, targetStage}.Sanitize() + ` (place bigint NOT NULL,
				provenance text COLLATE "C" NOT NULL, type text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL)`,
		}
		for _, typ := range fhir.ExportableTypes() {
			text = append(text, "CREATE UNLOGGED TABLE "+stage(typ)+` (last_updated timestamptz, place bigint NOT NULL,
				id text COLLATE "C" NOT NULL, patient text COLLATE "C" NOT NULL, others text[] COLLATE "C",
				head bytea NOT NULL, body text COMPRESSION lz4 COLLATE "C" NOT NULL)
				WITH (toast_tuple_target = 8160, autovacuum_enabled = false)`)
		}
		_, err := tx.Exec(ctx, strings.Join(text, ";"))
		return err
	})
}

// Line is one resource to stage.
type Line struct {
	Place int64 // of two versions with the same meta.lastUpdated the one with the higher place wins
	Facts fhir.Facts
	Body  []byte
}

// Stage copies resources of one exportable type to the server. It may be called concurrently; each call takes a
// connection of the pool. After an error close the load.
func (l *Load) Stage(ctx context.Context, typ string, lines []Line) error {
	if !fhir.IsExportable(typ) {
		return errNoType(typ)
	}
	rows := staging{lines: lines}
	var targets int64
	// In a step: after the turn was lost the tables belong to the next load.
	err := l.inStep(ctx, func(tx pgx.Tx) (err error) {
		_, err = tx.CopyFrom(ctx, pgx.Identifier{stageSchema, strings.ToLower(typ)}, []string{
			"last_updated", "place", "id", "patient", "others", "head", "body",
		}, &rows)
		if err == nil && typ == "Provenance" {
			targets, err = tx.CopyFrom(ctx, pgx.Identifier{stageSchema, targetStage},
				[]string{"place", "provenance", "type", "id"}, &stagingTargets{lines: lines, target: -1})
		}
		return err
	})
	if err != nil {
		return pgdb.Wrap("stage "+typ, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.staged[typ] += int64(len(lines))
	l.targets += targets
	return nil
}

// staging is the pgx.CopyFromSource of resources.
type staging struct {
	lines    []Line
	resource source.Resource
	values   [7]any
}

func (s *staging) Next() bool { return len(s.lines) > 0 }
func (s *staging) Err() error { return nil }

func (s *staging) Values() ([]any, error) {
	line := s.lines[0]
	s.lines = s.lines[1:]
	r := &s.resource
	source.Read(r, line.Facts, line.Body)
	s.values = [...]any{nil, line.Place, r.ID, "", nil, appendHead(nil, r), line.Body}
	if !line.Facts.LastUpdated.IsZero() {
		s.values[0] = line.Facts.LastUpdated
	}
	if r.Type == "Provenance" { // its patients are known when all other types are merged
		return s.values[:], nil
	}
	if len(r.Subjects) > 0 {
		s.values[3] = r.Subjects[0]
	}
	if len(r.Subjects) > 1 {
		s.values[4] = r.Subjects
	}
	return s.values[:], nil
}

// stagingTargets is the pgx.CopyFromSource of the targets of Provenance.
type stagingTargets struct {
	lines  []Line
	target int // of the first line
}

func (s *stagingTargets) Next() bool {
	for s.target++; len(s.lines) > 0 && s.target >= len(s.lines[0].Facts.Subjects); s.target = 0 {
		s.lines = s.lines[1:]
	}
	return len(s.lines) > 0
}

func (s *stagingTargets) Values() ([]any, error) {
	line := s.lines[0]
	target := line.Facts.Subjects[s.target]
	return []any{line.Place, line.Facts.ID, target.Type, target.ID}, nil
}

func (s *stagingTargets) Err() error { return nil }
