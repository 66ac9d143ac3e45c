package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/ndjson"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// Source is the place of the clinical data: a database or a folder, one of them.
type Source struct {
	Trust
	// postgres://user:password@host:port/database with the data, or SOURCE_DIR: docs/postgres.md
	URL string `env:"SOURCE_URL"`
	Dir string `env:"SOURCE_DIR"` // folder of .ndjson and .ndjson.gz files with the data
	// where gzipped files are unpacked at start; none: the system's temporary folder
	SpoolDir string `env:"SPOOL_DIR"`

	observed *telemetry.Dependencies
}

// Observed is the section whose calls are measured, of a database, as "source".
func (s Source) Observed(by *telemetry.Dependencies) Source {
	s.observed = by
	return s
}

// Validate refuses two places, none, and what is not the URL of one.
func (s Source) Validate() error {
	err := checkDatabase("SLUICE_SOURCE_URL", s.URL)
	if (s.URL == "") == (s.Dir == "") {
		err = errors.Join(err, errors.New("exactly one of SLUICE_SOURCE_URL and SLUICE_SOURCE_DIR must be set"))
	}
	return err
}

// Data is an open source.
type Data struct {
	source.Source
	Check func(context.Context) error // whether it can be read, for readiness
	Close func() error
	// Watch is a part of the process, or nil: it ends the process when the source can never be read again.
	Watch *rungroup.Component
}

// Open opens the place for a process that runs so many units at once. A folder's index is read, which
// takes seconds for a gigabyte; to a database no connection is made yet.
func (s Source) Open(ctx context.Context, log *slog.Logger, connections int) (*Data, error) {
	if s.URL != "" {
		roots, err := s.Roots()
		if err != nil {
			return nil, err
		}
		// Some more, so that neither a check nor small work beside the units waits. They are made when they are needed.
		opened, err := postgres.Open(ctx, pgdb.Config{
			URL: s.URL, Connections: connections + 4, Roots: roots, Observe: s.observed.Observer("source"),
		})
		if err != nil {
			return nil, fmt.Errorf("SLUICE_SOURCE_URL: %w", err)
		}
		return &Data{Source: opened, Check: opened.Check, Close: opened.Close}, nil
	}
	opened, err := ndjson.Open(ctx, ndjson.Config{Dir: s.Dir, SpoolDir: s.SpoolDir, Logger: log})
	if err != nil {
		return nil, err
	}
	watch := unchanged(opened.Check)
	return &Data{Source: opened, Check: opened.Check, Close: opened.Close, Watch: &watch}, nil
}

// Await returns when the source can be read. Services start in any order: a database that is not there yet, or not yet
// migrated, is asked again, and nothing is taken from the queue meanwhile.
func (d *Data) Await(ctx context.Context, log *slog.Logger) error {
	const again = 2 * time.Second
	for {
		err := d.Check(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("the source cannot be read yet", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}
