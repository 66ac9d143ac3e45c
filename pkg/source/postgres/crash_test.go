package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// TestServerCrash kills PostgreSQL after a load has merged and before it is sealed. Reads fail with an outage; after the
// restart the store is as before the load, and the load can be repeated.
func TestServerCrash(t *testing.T) {
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
	_, err := load.Seal(t.Context(), nil, func(context.Context, pgx.Tx) error {
		server.Kill()
		return nil
	})
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("Seal after a crash: %v, want export.ErrUnavailable", err)
	}
	if err := load.Close(t.Context()); err == nil {
		t.Error("Close without a server: no error")
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
