package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// TestACrashOfTheServer kills PostgreSQL when a load has merged everything and is about to show it. Readers are told of
// an outage; afterwards the store is as before the load, which can be done again.
func TestACrashOfTheServer(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	s := newStoreAt(t, server.URL())
	s.loadWith(ndjson(observation("o", "a", 1), provenance("p", "Observation/o")), keeping())
	before := s.snapshot()

	cfg := keeping()
	cfg.DeleteMissing = true
	again := ndjson(observation("o", "b", 2), observation("n", "a", 1), provenance("q", "Observation/n"))
	load := s.begin(cfg)
	s.stage(load, again)
	_, err := load.Seal(t.Context(), func(context.Context, pgx.Tx) error {
		server.Kill()
		return nil
	})
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("sealing in a crash: %v, want export.ErrUnavailable", err)
	}
	if err := load.Close(t.Context()); err == nil {
		t.Error("closing a load whose server is gone says nothing")
	}
	for name, call := range map[string]func() error{
		"ForPatients": func() error {
			return s.src.ForPatients(t.Context(), source.Query{Type: "Observation", Patients: []string{"a"}},
				func(source.Resource) error { return nil })
		},
		"Snapshot": func() error { _, err := s.src.Snapshot(t.Context(), time.Time{}); return err },
		"Sizes":    func() error { _, err := s.src.Sizes(t.Context()); return err },
		"Check":    func() error { return s.src.Check(t.Context()) },
	} {
		if err := call(); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s without a server: %v, want export.ErrUnavailable", name, err)
		}
	}

	server.Start()
	for _, at := range []time.Time{before, {}} {
		s.expect(at, "Observation", "o", "a")
		s.expect(at, "Observation", "", "b")
		s.expect(at, "Provenance", "p", "a")
	}
	s.loadWith(again, cfg)
	s.expect(time.Time{}, "Observation", "n", "a")
	s.expect(time.Time{}, "Observation", "o", "b")
	s.expect(time.Time{}, "Provenance", "q", "a")
	s.expect(before, "Observation", "o", "a")
	s.expect(before, "Provenance", "p", "a")
	s.sizesHold()
}

// TestASchemaThatIsMissingOrOld: a process that needs it says what to do.
func TestASchemaThatIsMissingOrOld(t *testing.T) {
	t.Parallel()
	src, err := postgres.Open(t.Context(), pgdb.Config{URL: testenv.Postgres(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := src.Check(t.Context()); err == nil {
		t.Error("a database without a schema serves")
	}
}
