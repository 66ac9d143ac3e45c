package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Directory configures where groups and grants are read from: a database, or a folder and a file.
type Directory struct {
	Trust
	// postgres://user:password@host:port/database with groups and grants, or GROUPS_DIR and ACCESS_FILE:
	// docs/access.md
	URL        string `env:"DIRECTORY_URL"`
	GroupsDir  string `env:"GROUPS_DIR"`  // folder with files named *Group*.ndjson
	AccessFile string `env:"ACCESS_FILE"` // grants, YAML: docs/access.md

	observed *telemetry.Dependencies
}

// Observed returns the section with metrics; calls of a database count as "directory".
func (d Directory) Observed(by *telemetry.Dependencies) Directory {
	d.observed = by
	return d
}

// Validate requires exactly one complete set of settings.
func (d Directory) Validate() error {
	err := checkDatabase("SLUICE_DIRECTORY_URL", d.URL)
	if d.URL != "" && d.GroupsDir == "" && d.AccessFile == "" || d.URL == "" && d.GroupsDir != "" && d.AccessFile != "" {
		return err
	}
	return errors.Join(err,
		errors.New("either SLUICE_DIRECTORY_URL must be set, or both SLUICE_GROUPS_DIR and SLUICE_ACCESS_FILE"))
}

// checkDatabase refuses a URL that is not one of a PostgreSQL database. It accepts an empty one.
func checkDatabase(variable, url string) error {
	if url == "" {
		return nil
	}
	if err := pgdb.CheckURL(url); err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

// Register holds the groups and grants of an open directory.
type Register struct {
	Groups directory.Groups
	Access directory.Access
	Check  func(context.Context) error // of readiness: returns an error unless both can be read
	Close  func()
}

// Open opens the directory. It reads a folder, whose members below the bases are local; to a database it makes no
// connection yet, and later at most the given number.
func (d Directory) Open(ctx context.Context, log *slog.Logger, bases fhir.Bases, connections int) (*Register, error) {
	if d.URL != "" {
		roots, err := d.Roots()
		if err != nil {
			return nil, err
		}
		pool, err := pgdir.Open(ctx, pgdb.Config{
			URL: d.URL, Connections: connections, Roots: roots, Observe: d.observed.Observer("directory"),
		})
		if err != nil {
			return nil, fmt.Errorf("SLUICE_DIRECTORY_URL: %w", err)
		}
		groups := pgdir.NewGroups(pool, time.Now)
		return &Register{Groups: groups, Access: pgdir.NewAccess(pool), Check: groups.Check, Close: pool.Close}, nil
	}
	groups, err := filedir.OpenGroups(ctx, d.GroupsDir, bases, time.Now, log)
	if err != nil {
		return nil, err
	}
	access, err := filedir.OpenAccess(d.AccessFile)
	if err != nil {
		return nil, err
	}
	check := func(ctx context.Context) error { return errors.Join(groups.Check(ctx), access.Check(ctx)) }
	return &Register{Groups: groups, Access: access, Check: check, Close: func() {}}, nil
}
