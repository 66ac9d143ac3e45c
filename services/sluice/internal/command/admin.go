package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// adminFlags are the flags of every admin command.
type adminFlags struct {
	database string
	audit    string // file of the audit log, or stdout
	json     bool
}

func (a *app) admin() *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Operate a deployment: jobs, workers, kick-offs, database, clients and audit log",
		Long: `Operate a deployment. The commands connect to the stores, not to a server.

Commands for groups, grants and the schema use PostgreSQL: --database, SLUICE_DATABASE_URL, or the content of the file
SLUICE_DATABASE_URL_FILE. Commands for jobs, units, kick-offs, workers and clients use Redis: --redis, SLUICE_REDIS_URL,
or the content of the file SLUICE_REDIS_URL_FILE. Doctor checks all stores. A failed command has changed nothing unless
its error states otherwise.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("missing command: see sluice admin --help")
		},
	}
	cmd.PersistentFlags().StringVar(&flags.database, "database", "",
		"URL of the database; default: SLUICE_DATABASE_URL")
	cmd.PersistentFlags().StringVar(&flags.audit, "audit-log", "",
		"file of the audit log, or stdout; default: SLUICE_AUDIT_LOG")
	cmd.AddCommand(a.migrate(&flags), a.group(&flags), a.grant(&flags), a.client(&flags), a.audit(), a.certificate(),
		a.job(&flags), a.unit(&flags), a.kickoffs(&flags), a.intake(&flags), a.worker(&flags), a.doctor(&flags))
	return cmd
}

// withJSON adds the flag --json.
func withJSON(cmd *cobra.Command, flags *adminFlags) *cobra.Command {
	cmd.Flags().BoolVar(&flags.json, "json", false, "print JSON instead of a table")
	return cmd
}

// parent is a command with subcommands only.
func parent(name, short, long string, subcommands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("missing command: see sluice admin %s --help", name)
		},
	}
	cmd.AddCommand(subcommands...)
	return cmd
}

func (a *app) migrate(flags *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the database to the schema of this program",
		Long: `Migrate the database to the schema of this program, from an empty database or from any earlier version.
Services of the previous version keep running meanwhile. A database with a newer schema is not changed.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			url, err := databaseURL(flags.database)
			if err != nil {
				return err
			}
			var version int64
			err = recorded(flags, "schema of the database", func() (err error) {
				version, err = pgdb.Migrate(ctx, url)
				return err
			})
			if err != nil {
				return err
			}
			return a.print(fmt.Sprintf("the schema has version %d\n", version))
		}),
	}
}

// databaseURL returns the URL of the flag or of the environment.
func databaseURL(flag string) (string, error) {
	return urlOf(flag, "--database", "SLUICE_DATABASE_URL")
}

// urlOf returns the URL of the flag, or else of the variable or the file that its _FILE names.
func urlOf(flag, flagName, name string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	url, err := variable(name)
	if err == nil && url == "" {
		err = usage("%s or %s is required", flagName, name)
	}
	return url, err
}

// variable returns the value of the variable, or the content of the file that its _FILE names, or "".
func variable(name string) (string, error) {
	value, file := os.Getenv(name), os.Getenv(name+"_FILE")
	if value != "" && file != "" {
		return "", usage("%s and %s_FILE are both set", name, name)
	}
	if file == "" {
		return value, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) { // without the name: it may be the secret itself
			err = path.Err
		}
		return "", usage("%s_FILE: the file cannot be read: %w", name, err)
	}
	return strings.TrimSpace(string(content)), nil
}

// withDirectory runs the work on the groups and grants of the database.
func (a *app) withDirectory(
	ctx context.Context, flags *adminFlags, work func(groups *pgdir.Groups, access *pgdir.Access) error,
) error {
	url, err := databaseURL(flags.database)
	if err != nil {
		return err
	}
	pool, err := pgdir.Open(ctx, pgdb.Config{URL: url, Connections: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	return work(pgdir.NewGroups(pool, a.now), pgdir.NewAccess(pool))
}

// printJSON writes a result as JSON.
func (a *app) printJSON(value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return a.print(string(text) + "\n")
}

// printColumns writes rows as a table. The first row is the heading.
func (a *app) printColumns(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// lines yields the trimmed lines of a file except empty ones; "-" is standard input. An error names the file.
func lines(file string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		from := os.Stdin
		if file != "-" {
			opened, err := os.Open(file)
			if err != nil {
				yield("", fmt.Errorf("read ids: %w", err))
				return
			}
			defer opened.Close()
			from = opened
		}
		scanner := bufio.NewScanner(from)
		for scanner.Scan() {
			if line := strings.TrimSpace(scanner.Text()); line != "" && !yield(line, nil) {
				return
			}
		}
		if err := scanner.Err(); err != nil {
			yield("", fmt.Errorf("read ids from %s: %w", place(file), err))
		}
	}
}

func place(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// validated yields the valid ids, and an error instead of the first invalid one. The error has its number, never its
// text: it may be an identifier of a patient.
func validated(ids iter.Seq2[string, error], valid func(string) bool, what, form string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		n := 0
		for id, err := range ids {
			if n++; err == nil && !valid(id) {
				err = fmt.Errorf("number %d of %s is not %s", n, what, form)
			}
			if !yield(id, err) || err != nil {
				return
			}
		}
	}
}
