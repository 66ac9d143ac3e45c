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

// adminFlags are those that every command of an operator has.
type adminFlags struct {
	database string
	audit    string // where changes are recorded
	json     bool
}

func (a *app) admin() *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Look after a deployment: its jobs, workers and intake, its database, clients and the audit log",
		Long: `Admin looks after a deployment. Its commands talk to the stores and not to a server.

Those about groups, grants and the schema talk to PostgreSQL: --database, or the variable SLUICE_DATABASE_URL or, for a
file that holds the URL, SLUICE_DATABASE_URL_FILE. Those about jobs, units, the intake, workers and clients talk to
Redis: --redis, SLUICE_REDIS_URL or SLUICE_REDIS_URL_FILE. Doctor looks at everything. A command that fails has changed
nothing, unless it says otherwise.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("a command is needed: see sluice admin --help")
		},
	}
	cmd.PersistentFlags().StringVar(&flags.database, "database", "",
		"URL of the database; default: the variable SLUICE_DATABASE_URL")
	cmd.PersistentFlags().StringVar(&flags.audit, "audit-log", "",
		"file that changes are recorded in, or stdout; default: the variable SLUICE_AUDIT_LOG")
	cmd.AddCommand(a.migrate(&flags), a.group(&flags), a.grant(&flags), a.client(&flags), a.audit(), a.certificate(),
		a.job(&flags), a.unit(&flags), a.intake(&flags), a.worker(&flags), a.doctor(&flags))
	return cmd
}

// askJSON gives the command the flag --json.
func askJSON(cmd *cobra.Command, flags *adminFlags) *cobra.Command {
	cmd.Flags().BoolVar(&flags.json, "json", false, "print JSON in place of a table")
	return cmd
}

// family is a command that only holds others.
func family(name, short, long string, members ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("a command is needed: see sluice admin %s --help", name)
		},
	}
	cmd.AddCommand(members...)
	return cmd
}

func (a *app) migrate(flags *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database to the schema of this program",
		Long: `Migrate brings the database to the schema of this program, from an empty database or from any version before.
Services of the version before go on meanwhile. A database that is further along stays as it is.`,
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

// databaseURL returns what the flag says or else the environment.
func databaseURL(flag string) (string, error) {
	return urlOf(flag, "--database", "SLUICE_DATABASE_URL", "the database")
}

// urlOf returns the URL of what that the flag says, or else the variable of that name or the file that its _FILE names.
func urlOf(flag, flagName, name, what string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	url, err := variable(name)
	if err == nil && url == "" {
		err = usage("%s or %s must say where %s is", flagName, name, what)
	}
	return url, err
}

// variable returns what the variable of that name or the file that its _FILE names holds, "" when there is neither.
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
		if errors.As(err, &path) { // whose name may be the secret itself
			err = path.Err
		}
		return "", usage("%s_FILE: the file cannot be read: %w", name, err)
	}
	return strings.TrimSpace(string(content)), nil
}

// directory runs the work on the directory of the database.
func (a *app) directory(
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

// printJSON writes a result for programs.
func (a *app) printJSON(value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return a.print(string(text) + "\n")
}

// printColumns writes rows, of which the first is the heading.
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

// lines yields what a file holds, one a line, without blank lines; "-" is standard input. An error names the file.
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

// checked yields the ids that hold, and an error in place of the first that does not. It says which one of what is
// meant, never what stands there.
func checked(ids iter.Seq2[string, error], holds func(string) bool, what, form string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		n := 0
		for id, err := range ids {
			if n++; err == nil && !holds(id) {
				err = fmt.Errorf("number %d of %s is not %s", n, what, form)
			}
			if !yield(id, err) || err != nil {
				return
			}
		}
	}
}
