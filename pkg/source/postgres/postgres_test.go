package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
	"github.com/sluice-fhir/sluice/pkg/testenv"

	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

func TestContract(t *testing.T) {
	t.Parallel()
	shared := newStore(t)
	sourcetest.Run(t, func(t *testing.T, files map[string][]byte) source.Source {
		s := shared.cleared(t)
		s.load(files)
		return s.src
	})
}

func TestSynthea(t *testing.T) {
	t.Parallel()
	dir, ok := testenv.Synthea(t)
	if !ok {
		return // not part of the repository; required in CI
	}
	s := newStore(t)
	s.load(folder(t, dir))
	sourcetest.RunSynthea(t, dir, s.src)
}

// folder reads every NDJSON file of a folder.
func folder(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	found, err := lines.InFolder(dir)
	must(t, err)
	for _, f := range found.Files {
		content, err := os.ReadFile(f.Path)
		must(t, err)
		text, err := lines.Open(f.Path, len(content)+1, false, func() io.Reader { return bytes.NewReader(content) })
		must(t, err)
		files[f.Path], err = io.ReadAll(text)
		must(t, errors.Join(err, text.Close()))
	}
	return files
}

// store is a database of one test.
type store struct {
	t   testing.TB
	url string
	in  *pgxpool.Pool
	src *postgres.Source
}

func newStore(t testing.TB) *store {
	t.Helper()
	return newStoreAt(t, testenv.Postgres(t))
}

func newStoreAt(t testing.TB, url string) *store {
	t.Helper()
	s := &store{t: t, url: url}
	if _, err := pgdb.Migrate(t.Context(), s.url); err != nil {
		t.Fatal(err)
	}
	s.in = s.loader()
	s.open()
	return s
}

// cleared removes all rows and returns a store of a subtest on the same database. A migration takes longer than most tests.
func (s *store) cleared(t *testing.T) *store {
	t.Helper()
	sub := &store{t: t, url: s.url, in: s.in}
	sub.exec("TRUNCATE resource, additional_subject, mention, target, tombstone, type_stats, left_out, load_batch")
	sub.exec("UPDATE trim_horizon SET load = 0")
	sub.open()
	return sub
}

// open opens the source, without the cached sizes of an older one.
func (s *store) open() {
	s.t.Helper()
	var err error
	if s.src, err = postgres.Open(s.t.Context(), pgdb.Config{URL: s.url, Connections: 8}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.src.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *store) loader() *pgxpool.Pool {
	s.t.Helper()
	pool, err := postgres.OpenLoader(s.t.Context(), pgdb.Config{URL: s.url, Connections: 4})
	must(s.t, err)
	s.t.Cleanup(pool.Close)
	return pool
}

func (s *store) begin(cfg postgres.LoadConfig) *postgres.Load {
	s.t.Helper()
	load, err := postgres.BeginLoad(s.t.Context(), s.in, cfg)
	must(s.t, err)
	s.t.Cleanup(func() {
		if err := load.Close(context.WithoutCancel(s.t.Context())); err != nil {
			s.t.Error(err)
		}
	})
	return load
}

// stage stages the lines of the files, the valid ones with their references resolved.
func (s *store) stage(load *postgres.Load, files map[string][]byte) {
	s.t.Helper()
	table := references.New(nil)
	deletions := map[int64]fhir.Ref{} // by place
	each := func(use func(place int64, facts fhir.Facts, body []byte)) {
		place := int64(0)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			text := bytes.TrimPrefix(files[name], []byte("\ufeff"))
			for line := range bytes.Lines(text) {
				place++
				var scanner fhir.Scanner
				body := bytes.TrimSpace(line)
				facts, err := scanner.Scan(body)
				refused, told := source.Refused(body)
				switch {
				case facts.Type == "Bundle":
					if ref, deletes := lines.Deletion(body); deletes {
						deletions[place] = ref
					}
				case err == nil && fhir.IsStored(facts.Type):
					use(place, facts, body)
				case err != nil && told:
					use(place, refused, nil)
				}
			}
		}
	}
	each(func(place int64, facts fhir.Facts, body []byte) {
		if table.Note(body); body == nil { // before Offer
			must(s.t, load.Stage(s.t.Context(), facts.Type, []postgres.Line{{Place: place, Facts: facts}}))
		}
	})
	each(func(_ int64, facts fhir.Facts, body []byte) {
		if body == nil {
			return
		}
		ref := fhir.Ref{Type: facts.Type, ID: facts.ID}
		table.OfferID(ref)
		table.Offer(ref, body)
	})
	must(s.t, load.Offer(s.t.Context(), table))
	byType := map[string][]postgres.Line{}
	each(func(place int64, facts fhir.Facts, body []byte) {
		if body == nil {
			return
		}
		resolved, _ := table.Resolve(nil, body, facts, func(string, fhir.Form) {})
		facts, err := new(fhir.Scanner).Scan(resolved)
		must(s.t, err)
		byType[facts.Type] = append(byType[facts.Type], postgres.Line{Place: place, Facts: facts, Body: resolved})
	})
	for typ, lines := range byType {
		must(s.t, load.Stage(s.t.Context(), typ, lines))
	}
	for place, ref := range deletions {
		must(s.t, load.Delete(s.t.Context(), []postgres.Deletion{{Place: place, Ref: ref}}))
	}
}

func (s *store) load(files map[string][]byte) postgres.Merged {
	s.t.Helper()
	return s.loadWith(files, postgres.LoadConfig{Parallel: 2})
}

func (s *store) loadWith(files map[string][]byte, cfg postgres.LoadConfig) postgres.Merged {
	s.t.Helper()
	load := s.begin(cfg)
	s.stage(load, files)
	merged, err := load.Seal(s.t.Context(), nil, nil)
	must(s.t, err)
	must(s.t, load.Close(s.t.Context()))
	return merged
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
