package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/ndjson"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// Source configures where the clinical data is read from: a database or a folder.
type Source struct {
	Trust
	// postgres://user:password@host:port/database with the data, or SOURCE_DIR: docs/postgres.md
	URL string `env:"SOURCE_URL"`
	Dir string `env:"SOURCE_DIR"` // folder of NDJSON files and Bundles with the data: docs/data.md
	// where gzipped files and Bundles are unpacked at start; none: the system's temporary folder
	SpoolDir string `env:"SPOOL_DIR"`
	References
	source.Limits

	observed *telemetry.Dependencies
}

// Observed returns the section with metrics; calls of a database count as "source".
func (s Source) Observed(by *telemetry.Dependencies) Source {
	s.observed = by
	return s
}

// Validate requires exactly one source.
func (s Source) Validate() error {
	err := checkDatabase("SLUICE_SOURCE_URL", s.URL)
	if (s.URL == "") == (s.Dir == "") {
		err = errors.Join(err, errors.New("exactly one of SLUICE_SOURCE_URL and SLUICE_SOURCE_DIR must be set"))
	}
	_, basesErr := s.Bases()
	return errors.Join(err, basesErr, s.Limits.Validate())
}

// References configures which absolute references are local.
type References struct {
	// public URL of the FHIR base; absolute references below it are local
	BaseURL string `env:"BASE_URL"`
	// further URLs, separated by commas; absolute references below them are local, all others are to other servers
	DataBases []string `env:"DATA_BASES"`
}

// Bases returns the bases of local references.
func (r References) Bases() (fhir.Bases, error) {
	urls := r.DataBases
	if r.BaseURL != "" {
		urls = append([]string{r.BaseURL}, urls...)
	}
	bases, err := fhir.NewBases(urls...)
	if err != nil {
		return nil, fmt.Errorf("SLUICE_BASE_URL, SLUICE_DATA_BASES: %w", err)
	}
	return bases, nil
}

// Data is an open source.
type Data struct {
	source.Source
	Check func(context.Context) error // of readiness: returns an error unless the source can be read
	Close func() error
	// Watch, unless nil, ends the process when the source can never be read again.
	Watch *rungroup.Component
}

// Open opens the source for a process that runs the given number of units at once. It indexes a folder, which takes
// seconds for a gigabyte; to a database it makes no connection yet.
func (s Source) Open(ctx context.Context, log *slog.Logger, connections int) (*Data, error) {
	if s.URL != "" {
		roots, err := s.Roots()
		if err != nil {
			return nil, err
		}
		// More connections than units, so that readiness checks do not wait.
		opened, err := postgres.Open(ctx, pgdb.Config{
			URL: s.URL, Connections: connections + 4, Roots: roots, Observe: s.observed.Observer("source"),
		})
		if err != nil {
			return nil, fmt.Errorf("SLUICE_SOURCE_URL: %w", err)
		}
		return &Data{Source: opened, Check: opened.Check, Close: opened.Close}, nil
	}
	bases, err := s.Bases()
	if err != nil {
		return nil, err
	}
	opened, err := ndjson.Open(ctx, ndjson.Config{
		Dir: s.Dir, SpoolDir: s.SpoolDir, Logger: log, Bases: bases, Limits: s.Limits,
	})
	if err != nil {
		return nil, err
	}
	watch := unchanged(opened.Check)
	return &Data{Source: opened, Check: opened.Check, Close: opened.Close, Watch: &watch}, nil
}

// Await returns when the source can be read. The worker takes no units before that.
func (d *Data) Await(ctx context.Context, log *slog.Logger) error {
	return retry(ctx, log, "the source cannot be read yet", d.Check)
}

// unchanged returns the component that stops a worker when the folder differs from its index. Such a worker cannot export;
// after the restart it indexes the folder again, and the units wait meanwhile.
func unchanged(check func(context.Context) error) rungroup.Component {
	return rungroup.Every("source", 15*time.Second, check)
}
