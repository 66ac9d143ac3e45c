package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/sluice/internal/loader"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

func (a *app) load() *cobra.Command {
	var cfg postgres.LoadConfig
	cmd := &cobra.Command{
		Use:   "load --database URL PATH...",
		Short: "Load NDJSON files into a PostgreSQL store",
		Long: `Load the resources and groups of NDJSON files, plain or gzipped, into the PostgreSQL store that workers export
from. A path is a file, or a folder with *.ndjson and *.ndjson.gz files. The command first migrates the database to the
schema of this program.

A load becomes visible as a whole when it is done; exports that started before do not see it. A second load updates: of
two versions of a resource the newer meta.lastUpdated wins, and on a tie the one loaded later. An invalid line is
reported with its file and number, and the rest is loaded (exit code 3). An interrupted load leaves nothing: run it
again.`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.run(func(ctx context.Context, paths []string) error {
			if cfg.Parallel < 1 {
				return usage("--parallel must be at least 1")
			}
			if cfg.History < 0 {
				return usage("--history must not be negative")
			}
			url, err := a.databaseURL()
			if err != nil {
				return err
			}
			return a.runLoad(ctx, url, cfg, paths)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&a.flags.database, "database", "",
		"URL of the database; default: SLUICE_DATABASE_URL, or the content of the file SLUICE_DATABASE_URL_FILE")
	f.BoolVar(&cfg.DeleteMissing, "delete-missing", false,
		"the files are complete for their types: delete resources that are not in them")
	f.DurationVar(&cfg.History, "history", 7*24*time.Hour,
		"how long exports can read replaced and deleted versions")
	f.IntVar(&cfg.Parallel, "parallel", runtime.GOMAXPROCS(0), "database sessions that merge concurrently")
	return cmd
}

func (a *app) runLoad(ctx context.Context, url string, cfg postgres.LoadConfig, paths []string) (err error) {
	files, err := loader.Find(paths)
	if err != nil {
		return err
	}
	if _, err := pgdb.Migrate(ctx, url); err != nil {
		return err
	}
	began := time.Now()
	pool, err := postgres.OpenLoader(ctx, pgdb.Config{URL: url, Connections: max(cfg.Parallel, runtime.GOMAXPROCS(0)) + 4})
	if err != nil {
		return err
	}
	defer pool.Close()
	load, err := postgres.BeginLoad(ctx, pool, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, load.Close(context.WithoutCancel(ctx))) }()
	groups, err := pgdir.BeginLoad(ctx, pool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, groups.Close(context.WithoutCancel(ctx))) }()

	summary, err := a.readInto(ctx, load, groups, files)
	if err != nil {
		return err
	}
	if cfg.DeleteMissing && summary.Problems > 0 {
		return fmt.Errorf("%d invalid lines: with --delete-missing nothing was loaded or deleted", summary.Problems)
	}
	a.say("read in %s; merging\n", time.Since(began).Round(time.Millisecond))
	merged, err := load.Seal(ctx, groups.Sealing(cfg.DeleteMissing))
	if err != nil {
		return err
	}
	if err := a.printLoad(summary, merged, time.Since(began)); err != nil {
		return err
	}
	if summary.Problems > 0 {
		a.say("%d lines were left out\n", summary.Problems)
		return errPartial
	}
	return nil
}

func (a *app) readInto(
	ctx context.Context, load *postgres.Load, groups *pgdir.Load, files []loader.File,
) (loader.Summary, error) {
	var total int64
	for _, file := range files {
		total += file.Size
	}
	bar := progress.NewCount(a.stderr, "kB read", int(total/1000), time.Now)
	defer bar.Close()
	var mu sync.Mutex
	var done int64
	return loader.Read(ctx, files, loader.Sink{
		Resources: load.Stage,
		Group: func(ctx context.Context, place int64, line []byte) (problem, err error) {
			var invalid *pgdir.Problem
			if err = groups.Add(ctx, place, line); errors.As(err, &invalid) {
				return invalid, nil
			}
			return nil, err
		},
		Problem: func(place, what string) { a.say("%s: %s\n", place, what) },
		Progress: func(bytes int64) {
			mu.Lock()
			defer mu.Unlock()
			done += bytes
			bar.Set(int(done / 1000))
		},
	})
}

func (a *app) printLoad(summary loader.Summary, merged postgres.Merged, took time.Duration) error {
	rows, resources := countRows(summary.Resources)
	if err := a.printColumns(rows); err != nil {
		return err
	}
	text := ""
	for _, typ := range slices.Sorted(maps.Keys(summary.Ignored)) {
		text += fmt.Sprintf("ignored: %d of type %s, which is never exported\n", summary.Ignored[typ], typ)
	}
	return a.print(text + fmt.Sprintf("%d added, %d replaced, %d unchanged, %d deleted; %s in %s: %.0f resources/s\n",
		merged.Added, merged.Replaced, merged.Unchanged, merged.Deleted, progress.Size(summary.Bytes),
		took.Round(time.Millisecond), float64(resources)/took.Seconds()))
}

func (a *app) synth() *cobra.Command {
	cfg := synth.Config{}
	cmd := &cobra.Command{
		Use:   "synth --patients N --out DIR",
		Short: "Generate a synthetic population for tests and demonstrations",
		Long: `Generate a synthetic FHIR R4 population and write one NDJSON file per resource type. No person in it exists.
The same seed gives the same files, byte for byte.`,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if cfg.Patients < 1 {
				return usage("--patients must be at least 1")
			}
			count := progress.NewCount(a.stderr, "patients", cfg.Patients, time.Now)
			cfg.Progress = count.Set
			summary, err := synth.Generate(ctx, cfg)
			count.Close()
			if err != nil {
				return err
			}
			rows, _ := countRows(summary.Types)
			if err := a.printColumns(rows); err != nil {
				return err
			}
			return a.print(fmt.Sprintf("%d files, %s; groups: %s\n",
				summary.Files, progress.Size(summary.Bytes), strings.Join(summary.Groups, " ")))
		}),
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Patients, "patients", 0, "number of patients")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed of the population")
	f.StringVar(&cfg.Dir, "out", "", "folder for the files; created when missing")
	require(cmd, "patients", "out")
	return cmd
}
