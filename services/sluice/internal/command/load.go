package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/services/sluice/internal/loader"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

// loadOptions are the flags of the load command.
type loadOptions struct {
	database      string
	deleteMissing bool
	history       time.Duration
	parallel      int
}

func (a *app) load() *cobra.Command {
	var opts loadOptions
	cmd := &cobra.Command{
		Use:   "load --database URL PATH...",
		Short: "Bring NDJSON files into a PostgreSQL store",
		Long: `Load brings the resources and groups of NDJSON files, plain or gzipped, into the PostgreSQL store that workers
export from. A path is a file, or a folder whose *.ndjson and *.ndjson.gz are meant. The database is brought to the
schema of this program first.

Everything of a load shows at once, when it is done; exports that have begun before do not see it. Loading again
updates: of one resource the newest meta.lastUpdated counts, on a tie what is loaded later. A line that cannot be
understood is told with its file and number, and the rest goes in (exit code 3). A load that is broken off leaves
nothing: run it again.`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.run(func(ctx context.Context, paths []string) error {
			if opts.parallel < 1 {
				return usage("--parallel must be at least 1")
			}
			if opts.history < 0 {
				return usage("--history must not be negative")
			}
			url, err := databaseURL(opts.database)
			if err != nil {
				return err
			}
			opts.database = url
			return a.runLoad(ctx, opts, paths)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&opts.database, "database", "",
		"URL of the database; default: SLUICE_DATABASE_URL or the file that SLUICE_DATABASE_URL_FILE names")
	f.BoolVar(&opts.deleteMissing, "delete-missing", false,
		"the files are all there is of the types in them: delete what is not there")
	f.DurationVar(&opts.history, "history", 7*24*time.Hour,
		"for how long exports can still read what was replaced or deleted")
	f.IntVar(&opts.parallel, "parallel", runtime.GOMAXPROCS(0), "sessions of the database that merge at once")
	return cmd
}

func (a *app) runLoad(ctx context.Context, opts loadOptions, paths []string) (err error) {
	files, err := loader.Find(paths)
	if err != nil {
		return err
	}
	if _, err := pgdb.Migrate(ctx, opts.database); err != nil {
		return err
	}
	began := a.now()
	pool, err := postgres.OpenLoader(ctx, pgdb.Config{
		URL: opts.database, Connections: max(opts.parallel, runtime.GOMAXPROCS(0)) + 4,
	})
	if err != nil {
		return err
	}
	defer pool.Close()
	load, err := postgres.BeginLoad(ctx, pool, postgres.LoadConfig{
		Parallel: opts.parallel, DeleteMissing: opts.deleteMissing, History: opts.history,
	})
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
	if opts.deleteMissing && summary.Problems > 0 {
		return fmt.Errorf("%d lines cannot be read, so nobody knows what is missing: nothing was loaded or deleted",
			summary.Problems)
	}
	read := a.now().Sub(began)
	a.say("read in %s; sorting in\n", read.Round(time.Millisecond))
	merged, err := load.Seal(ctx, groups.Sealing(opts.deleteMissing))
	if err != nil {
		return err
	}
	if err := a.print(loadTable(summary, merged, a.now().Sub(began))); err != nil {
		return err
	}
	if summary.Problems > 0 {
		a.say("%d lines are left out\n", summary.Problems)
		return errPartial
	}
	return nil
}

// readInto stages what the files hold.
func (a *app) readInto(
	ctx context.Context, load *postgres.Load, groups *pgdir.Load, files []loader.File,
) (loader.Summary, error) {
	var total int64
	for _, file := range files {
		total += file.Size
	}
	bar := progress.NewCount(a.stderr, "kB read", int(total/1000), a.now)
	defer bar.Close()
	var mu sync.Mutex
	var done int64
	return loader.Read(ctx, files, loader.Sink{
		Resources: load.Stage,
		Group: func(ctx context.Context, place int64, line []byte) (problem, err error) {
			var told *pgdir.Problem
			if err = groups.Add(ctx, place, line); errors.As(err, &told) {
				return told, nil
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

func loadTable(summary loader.Summary, merged postgres.Merged, took time.Duration) string {
	rows := [][]string{{"type", "resources"}}
	var resources int64
	for _, typ := range slices.Sorted(maps.Keys(summary.Resources)) {
		rows = append(rows, []string{typ, strconv.FormatInt(summary.Resources[typ], 10)})
		resources += summary.Resources[typ]
	}
	rows = append(rows, []string{"total", strconv.FormatInt(resources, 10)})
	text := table(rows)
	for _, typ := range slices.Sorted(maps.Keys(summary.PassedBy)) {
		text += fmt.Sprintf("passed by: %d of type %s, which no export holds\n", summary.PassedBy[typ], typ)
	}
	return text + fmt.Sprintf("%d added, %d replaced, %d unchanged, %d deleted; %s in %s: %.0f resources/s\n",
		merged.Added, merged.Replaced, merged.Unchanged, merged.Deleted, progress.Size(summary.Bytes),
		took.Round(time.Millisecond), float64(resources)/took.Seconds())
}
