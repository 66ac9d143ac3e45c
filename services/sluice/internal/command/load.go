package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/sluice/internal/loader"
	"github.com/sluice-fhir/sluice/services/sluice/internal/progress"
)

// loadFlags are the flags of the command load.
type loadFlags struct {
	store         postgres.LoadConfig
	bases         []string
	maxLine       int
	maxReferences int
	dryRun        bool
}

func (a *app) load() *cobra.Command {
	var flags loadFlags
	cmd := &cobra.Command{
		Use:   "load --database URL PATH...",
		Short: "Load FHIR resources and groups into a PostgreSQL store",
		Long: `Load the resources and groups of files into the PostgreSQL store that workers export from. A file has NDJSON or
FHIR Bundles, plain or gzipped. A path is a file, or a folder with files whose names end in .ndjson, .jsonl or .json, and
perhaps .gz. "-" is standard input, which is first copied into a folder below TMPDIR, because files may be read more than
once; the copy is removed at the end. The command migrates the database to the schema of this program.

A load becomes visible as a whole when it is done; exports that started before do not see it. A second load updates: of
two versions of a resource the one with the higher meta.versionId wins if both have one, else the one with the newer
meta.lastUpdated, and on a tie the one loaded later. Entries of Bundles that delete a resource delete it.

References of the form urn:uuid:... or Type?identifier=... are resolved, by the files first and then by the store.
Absolute references are those of another server unless they are below --data-base.

What is left out is counted by type and reason, with the first place, and the rest is loaded (exit code 3). Files without
FHIR resources are passed by. An interrupted load changes nothing. Run it again.`,
		Example: `  sluice load --database postgres://sluice@db/sluice ./export
  sluice load --data-base https://ehr.example.org/fhir --delete-missing ./export
  sluice load --dry-run ./synthea/output/fhir
  ssh ehr.example.org cat export/Patient.ndjson.gz | sluice load --database postgres://sluice@db/sluice -`,
		Args: atLeast("PATH"),
		RunE: a.run(func(ctx context.Context, paths []string) (err error) {
			reading, err := flags.reading()
			if err != nil {
				return err
			}
			var database pgdb.Config
			if !flags.dryRun {
				if database.URL, err = a.databaseURL(); err != nil {
					return err
				}
				if database.Roots, err = a.roots(); err != nil {
					return err
				}
			}
			found, remove, err := a.findFiles(ctx, paths)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, remove()) }()
			if flags.dryRun {
				return a.dryLoad(ctx, reading, found)
			}
			return a.runLoad(ctx, database, flags.store, reading, found)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&a.flags.database, "database", "",
		"URL of the database; default: SLUICE_DATABASE_URL, or the content of the file SLUICE_DATABASE_URL_FILE")
	f.StringVar(&a.flags.caFile, "ca-file", "",
		"additional certificate authorities (PEM) for PostgreSQL; default: SLUICE_CA_FILE")
	f.StringArrayVar(&flags.bases, "data-base", nil, "base URL of absolute references in the data; may be repeated; "+
		"in addition to SLUICE_DATA_BASES (separated by commas) and SLUICE_BASE_URL")
	limits := envconfig.Defaults[source.Limits]()
	f.IntVar(&flags.maxLine, "max-line", 0, fmt.Sprintf(
		"longest resource in bytes; default: SLUICE_MAX_LINE, or %d", limits.MaxLine))
	f.IntVar(&flags.maxReferences, "max-references", 0, fmt.Sprintf(
		"most references of a resource, except a Group; default: SLUICE_MAX_REFERENCES, or %d", limits.MaxReferences))
	f.BoolVar(&flags.store.DeleteMissing, "delete-missing", false,
		"treat the files as complete: delete every resource of their types that they do not contain")
	f.DurationVar(&flags.store.History, "history", 7*24*time.Hour,
		"how long exports can read replaced and deleted versions")
	f.DurationVar(&flags.store.Deletions, "deletions", 400*24*time.Hour,
		"how long incremental exports know of a deletion, at least --history")
	f.IntVar(&flags.store.Parallel, "parallel", runtime.GOMAXPROCS(0), "database sessions that merge concurrently")
	f.BoolVar(&flags.dryRun, "dry-run", false,
		"read the files and report, without the database: references to what is only in the store stay unresolved")
	return a.withJSON(cmd)
}

// reading returns the configuration of the loader.
func (f *loadFlags) reading() (cfg loader.Config, err error) {
	if f.store.Parallel < 1 {
		return cfg, usage("--parallel must be at least 1")
	}
	if f.store.History < 0 || f.store.Deletions < 0 {
		return cfg, usage("--history and --deletions must not be negative")
	}
	otherwise := envconfig.Defaults[source.Limits]()
	if cfg.MaxLine, err = limit(f.maxLine, "SLUICE_MAX_LINE", otherwise.MaxLine); err != nil {
		return cfg, err
	}
	if cfg.MaxReferences, err = limit(f.maxReferences, "SLUICE_MAX_REFERENCES", otherwise.MaxReferences); err != nil {
		return cfg, err
	}
	if err := cfg.Limits.Validate(); err != nil {
		return cfg, wrong(err, given{"--max-line", "SLUICE_MAX_LINE", f.maxLine != 0},
			given{"--max-references", "SLUICE_MAX_REFERENCES", f.maxReferences != 0})
	}
	for _, from := range []struct {
		name  string
		bases []string
	}{
		{"--data-base", f.bases},
		{"SLUICE_DATA_BASES", strings.Split(os.Getenv("SLUICE_DATA_BASES"), ",")},
		{"SLUICE_BASE_URL", []string{os.Getenv("SLUICE_BASE_URL")}},
	} {
		for i := range from.bases {
			from.bases[i] = strings.TrimSpace(from.bases[i])
		}
		bases, err := fhir.NewBases(slices.DeleteFunc(from.bases, func(base string) bool { return base == "" })...)
		if err != nil {
			return cfg, usage("%s: %w", from.name, err)
		}
		cfg.Bases = append(cfg.Bases, bases...)
	}
	return cfg, nil
}

// limit returns the value of a flag, of a variable, or the default.
func limit(flag int, name string, otherwise int) (int, error) {
	text := os.Getenv(name)
	switch {
	case flag != 0:
		return flag, nil
	case text == "":
		return otherwise, nil
	}
	value, err := strconv.Atoi(text)
	if err != nil {
		return 0, usage("%s must be a whole number, not %q", name, text)
	}
	return value, nil
}

func (a *app) findFiles(ctx context.Context, paths []string) (found loader.Found, remove func() error, err error) {
	found, remove, err = findWithStdin(ctx, paths)
	if n := len(found.Other); err == nil && n > 0 {
		a.say("passed by %s with other endings: %s\n", plural.Of(n, "file"), strings.Join(found.Other[:min(n, 10)], ", "))
	}
	return found, remove, err
}

func (a *app) runLoad(
	ctx context.Context, database pgdb.Config, cfg postgres.LoadConfig, reading loader.Config, found loader.Found,
) (err error) {
	if _, err := pgdb.MigrateTrusting(ctx, database.URL, database.Roots); err != nil {
		return err
	}
	began := time.Now()
	database.Connections = max(cfg.Parallel, runtime.GOMAXPROCS(0)) + 4
	pool, err := postgres.OpenLoader(ctx, database)
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

	gone := goneGroups{places: map[string]int64{}}
	summary, err := a.readInto(ctx, found, reading, loader.Sink{
		Resources: load.Stage,
		Group:     groups.Add,
		Delete: func(ctx context.Context, list []postgres.Deletion) error {
			gone.note(list)
			return load.Delete(ctx, list)
		},
		Resolve: load.Offer,
	})
	if err != nil {
		return err
	}
	report := loadReport{Summary: summary}
	if err := report.refuse(cfg.DeleteMissing); err != nil {
		return errors.Join(a.printLeftOut(report), err)
	}
	a.say("read in %s; merging\n", time.Since(began).Round(time.Millisecond))
	report.Merged, err = load.Seal(ctx, report.given(), groups.Sealing(cfg.DeleteMissing, gone.places))
	if err != nil {
		return err
	}
	report.Unheld = load.Unheld()
	provenance, err := load.LeftOut(ctx)
	if err != nil {
		return err
	}
	for _, left := range provenance {
		report.LeftOut = append(report.LeftOut, loader.LeftOut{LeftOut: left})
	}
	report.Seconds = time.Since(began).Seconds()
	return a.printLoad(report)
}

// goneGroups are the Groups to delete, each with the place of the deletion.
type goneGroups struct {
	mu     sync.Mutex
	places map[string]int64
}

// note notes the Groups of the list.
func (g *goneGroups) note(list []postgres.Deletion) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, deletion := range list {
		if deletion.Ref.Type == "Group" {
			g.places[deletion.Ref.ID] = max(g.places[deletion.Ref.ID], deletion.Place)
		}
	}
}

// dryLoad reads the files and reports.
func (a *app) dryLoad(ctx context.Context, reading loader.Config, found loader.Found) error {
	began := time.Now()
	summary, err := a.readInto(ctx, found, reading, loader.Sink{
		Resources: func(context.Context, string, []postgres.Line) error { return nil },
		Group:     func(_ context.Context, _ int64, line []byte) (pgdir.Added, error) { return pgdir.Examine(line) },
		Delete:    func(context.Context, []postgres.Deletion) error { return nil },
		Resolve:   func(context.Context, *references.Table) error { return nil },
	})
	if err != nil {
		return err
	}
	report := loadReport{Summary: summary, Unheld: map[string]int64{}, DryRun: true, Seconds: time.Since(began).Seconds()}
	if err := report.refuse(false); err != nil {
		return errors.Join(a.printLeftOut(report), err)
	}
	return a.printLoad(report)
}

func (a *app) readInto(
	ctx context.Context, found loader.Found, cfg loader.Config, sink loader.Sink,
) (loader.Summary, error) {
	var total int64
	for _, file := range found.Files {
		total += file.Size
	}
	bar := progress.NewCount(a.stderr, "kB read", int(total/1000), time.Now)
	defer bar.Close()
	var mu sync.Mutex
	var done int64
	sink.Say = func(text string) { a.say("%s\n", text) }
	sink.Progress = func(bytes int64) {
		mu.Lock()
		defer mu.Unlock()
		done += bytes
		bar.Set(int(done / 1000))
	}
	return loader.Read(ctx, found, cfg, sink)
}

// loadReport is what a load prints.
type loadReport struct {
	loader.Summary
	postgres.Merged
	Unheld  map[string]int64 // of the merged resources, by type: their patient is not in the store
	DryRun  bool
	Seconds float64
}

// refuse returns an error if the files cannot be loaded at all.
func (r *loadReport) refuse(deleteMissing bool) error {
	unreadable := r.Unreadable()
	switch {
	case deleteMissing && unreadable > 0:
		return fmt.Errorf("%s cannot be read: with --delete-missing nothing was loaded or deleted",
			plural.Of(unreadable, "line or file", "lines or files"))
	case len(r.Resources) == 0 && r.Groups == 0 && r.Deletions == 0:
		return errors.New("the files have no resources to load")
	}
	return nil
}

// given returns what the store cannot count itself.
func (r *loadReport) given() []export.LeftOut {
	var list []export.LeftOut
	for _, left := range r.LeftOut {
		switch left.Reason {
		case export.NoPatient, export.InvalidSubject, export.UnresolvedPatient, export.ForeignPatient, // rows of the store
			export.MemberByIdentifier, export.MemberUnresolved, export.MemberForeign, export.MemberType: // the directory's
		default:
			list = append(list, left.LeftOut)
		}
	}
	return list
}

// warnings returns the number of what should not have been left out.
func (r *loadReport) warnings() int64 {
	n := int64(0)
	for _, left := range r.LeftOut {
		if left.Reason.Warning() {
			n += left.Count
		}
	}
	return n
}

// printLoad prints the report. It returns errPartial if something was left out that should not be.
func (a *app) printLoad(r loadReport) error {
	if a.flags.json {
		if err := a.printJSON(r.json()); err != nil {
			return err
		}
		return a.partial(r)
	}
	rows, resources := countRows(r.Resources)
	if err := a.printColumns(rows); err != nil {
		return err
	}
	if err := a.printLeftOut(r); err != nil {
		return err
	}
	var text strings.Builder
	note := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	for _, typ := range slices.Sorted(maps.Keys(r.Ignored)) {
		note("ignored: %s of type %s, which is never exported", plural.Of(r.Ignored[typ], "resource"), typ)
	}
	for _, typ := range slices.Sorted(maps.Keys(r.Unheld)) {
		note("note: %s of type %s about patients that the store does not have", plural.Of(r.Unheld[typ], "new resource"), typ)
	}
	if r.Undated > 0 {
		note("note: %s with a meta.lastUpdated that is not an instant and does not count", plural.Of(r.Undated, "resource"))
	}
	if slices.ContainsFunc(r.LeftOut, func(l loader.LeftOut) bool {
		return l.Reason == export.ForeignPatient || l.Reason == export.ForeignReference
	}) {
		note("note: if absolute references are to this data, name their base with --data-base")
	}
	took := time.Duration(r.Seconds * float64(time.Second)).Round(time.Millisecond)
	rate := fmt.Sprintf("%s in %s: %.0f resources/s", progress.Size(r.Bytes), took, float64(resources)/r.Seconds)
	if r.DryRun {
		note("nothing was loaded (--dry-run); %s", rate)
	} else {
		if older := resources - r.Added - r.Replaced - r.Unchanged; older > 0 {
			note("note: %s of resources that the files have more than once, or delete", plural.Of(older, "older version"))
		}
		note("%d added, %d replaced, %d unchanged, %d deleted; %s; %s", r.Added, r.Replaced, r.Unchanged, r.Deleted,
			plural.Of(r.Groups, "group"), rate)
	}
	if err := a.print(text.String()); err != nil {
		return err
	}
	return a.partial(r)
}

func (a *app) partial(r loadReport) error {
	if n := r.warnings(); n > 0 {
		a.say("%s left out or not followed: see the table\n", plural.Of(n, "item was", "items were"))
		return errPartial
	}
	return nil
}

// printLeftOut prints what is left out as a table.
func (a *app) printLeftOut(r loadReport) error {
	if len(r.LeftOut) == 0 || a.flags.json {
		return nil
	}
	rows := []row{{}, {"left out", "count", "reason", "first"}}
	for _, left := range r.LeftOut {
		rows = append(rows, row{cmp.Or(left.Type, "-"), left.Count, left.Reason.Text(), cmp.Or(left.First, "-")})
	}
	return a.printColumns(append(rows, row{}))
}

// json returns the report with the names of the output.
func (r *loadReport) json() any {
	return map[string]any{
		"resources": r.Resources, "groups": r.Groups, "bytes": r.Bytes,
		"leftOut": append([]loader.LeftOut{}, r.LeftOut...), "ignored": r.Ignored, "undated": r.Undated,
		"patientNotHeld": r.Unheld,
		"added":          r.Added, "replaced": r.Replaced, "unchanged": r.Unchanged,
		"deleted": r.Deleted, "dryRun": r.DryRun, "seconds": r.Seconds,
	}
}

func (a *app) synth() *cobra.Command {
	cfg := synth.Config{}
	cmd := &cobra.Command{
		Use:   "synth --patients N --out DIR",
		Short: "Generate a synthetic population for tests and demonstrations",
		Long: `Generate a synthetic FHIR R4 population and write one NDJSON file per resource type. No person in it exists.
The same seed gives the same files, byte for byte.`,
		Example: `  sluice synth --patients 100 --out sample
  sluice load --database postgres://sluice@db/sluice sample`,
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
			return a.print(fmt.Sprintf("%s, %s; groups: %s\n",
				plural.Of(summary.Files, "file"), progress.Size(summary.Bytes), strings.Join(summary.Groups, " ")))
		}),
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Patients, "patients", 0, "number of patients")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed of the population")
	f.StringVar(&cfg.Dir, "out", "", "folder for the files; created when missing")
	require(cmd, "patients", "out")
	return cmd
}
