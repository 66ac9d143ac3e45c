package command

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
	"github.com/sluice-fhir/sluice/services/config"
)

func (a *app) admin() *cobra.Command {
	cmd := parent("admin", "Operate a deployment: jobs, workers, kick-offs, database, clients and audit log",
		`Operate a deployment. The commands connect to the stores, not to a server.

Commands for groups, grants and the schema use PostgreSQL: --database, SLUICE_DATABASE_URL, or the content of the file
SLUICE_DATABASE_URL_FILE. Commands for jobs, units, kick-offs, workers and clients use Redis: --redis, SLUICE_REDIS_URL,
or the content of the file SLUICE_REDIS_URL_FILE. Doctor checks all stores. A failed command has changed nothing unless
its error states otherwise.`,
		a.migrate(), a.group(), a.grant(), a.client(), a.audit(), a.certificate(), a.job(), a.unit(), a.kickoffs(),
		a.worker(), a.doctor())
	cmd.PersistentFlags().StringVar(&a.flags.database, "database", "",
		"URL of the database; default: SLUICE_DATABASE_URL")
	cmd.PersistentFlags().StringVar(&a.flags.caFile, "ca-file", "",
		"additional certificate authorities (PEM), for Redis, PostgreSQL and the object store; default: SLUICE_CA_FILE")
	cmd.PersistentFlags().StringVar(&a.flags.audit, "audit-log", "",
		"file of the audit log that records changes, or stdout; default: SLUICE_AUDIT_LOG")
	return cmd
}

func parent(name, short, long string, subcommands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Long: long}
	cmd.AddCommand(subcommands...)
	return cmd
}

func (a *app) migrate() *cobra.Command {
	return &cobra.Command{
		Use:     "migrate",
		Short:   "Migrate the database to the schema of this program",
		Example: `  sluice admin migrate --database 'postgres://owner@db/sluice?sslmode=verify-full'`,
		Long: `Migrate the database to the schema of this program, from an empty database or from any earlier version.
Services of the previous version keep running meanwhile. A database with a newer schema is not changed.`,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			url, err := a.databaseURL()
			if err != nil {
				return err
			}
			roots, err := a.roots()
			if err != nil {
				return err
			}
			return a.recorded("schema of the database", func() (string, error) {
				version, err := pgdb.MigrateTrusting(ctx, url, roots)
				return fmt.Sprintf("the schema has version %d\n", version), err
			})
		}),
	}
}

func (a *app) databaseURL() (string, error) {
	url, err := urlOf(a.flags.database, "--database", "SLUICE_DATABASE_URL")
	if err != nil {
		return "", err
	}
	if err := pgdb.CheckURL(url); err != nil {
		return "", wrong(fmt.Errorf("SLUICE_DATABASE_URL: %w", err),
			given{"--database", "SLUICE_DATABASE_URL", a.flags.database != ""})
	}
	return url, nil
}

// roots returns the root certificates for Redis and databases; nil means the system's.
func (a *app) roots() (*x509.CertPool, error) {
	roots, err := a.trust().Roots()
	return roots, wrong(err, given{"--ca-file", "SLUICE_CA_FILE", a.flags.caFile != ""})
}

// given is a flag, the variable that it replaces, and whether it is given.
type given struct {
	flag, variable string
	is             bool
}

// wrong returns an error of settings as a usage error that names the flags that are given instead of their variables.
func wrong(err error, flags ...given) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, f := range flags {
		if f.is {
			text = strings.ReplaceAll(text, f.variable, f.flag)
		}
	}
	return usage("%s", text)
}

func (a *app) trust() config.Trust {
	return config.Trust{CAFile: orVariable(a.flags.caFile, "SLUICE_CA_FILE")}
}

// wrongRedis names the flag of the URL, if it is given.
func (a *app) wrongRedis(err error) error {
	return wrong(err, given{"--redis", "SLUICE_REDIS_URL", a.flags.redis != ""},
		given{"--ca-file", "SLUICE_CA_FILE", a.flags.caFile != ""})
}

func (a *app) redisURL() (string, error) { return urlOf(a.flags.redis, "--redis", "SLUICE_REDIS_URL") }

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
		return "", usage("%s_FILE: the file cannot be read: %w", name, configfile.WithoutPath(err))
	}
	return strings.TrimSpace(string(content)), nil
}

func orVariable(flag, name string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(name)
}

// onDirectory completes a command on the groups and grants of the database.
func (a *app) onDirectory(
	cmd *cobra.Command, work func(ctx context.Context, groups *pgdir.Groups, grants *pgdir.Access, args []string) error,
) *cobra.Command {
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		url, err := a.databaseURL()
		if err != nil {
			return err
		}
		roots, err := a.roots()
		if err != nil {
			return err
		}
		pool, err := pgdir.Open(ctx, pgdb.Config{URL: url, Connections: 2, Roots: roots})
		if err != nil {
			return err
		}
		defer pool.Close()
		return work(ctx, pgdir.NewGroups(pool, time.Now), pgdir.NewAccess(pool), args)
	})
	return cmd
}

// idsIn yields the trimmed lines of a file except empty ones; "-" is standard input. An error names the file.
func idsIn(file string) iter.Seq2[string, error] {
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

// prepend yields the ids and then those of the rest, which may be nil.
func prepend(ids []string, rest iter.Seq2[string, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, id := range ids {
			if !yield(id, nil) {
				return
			}
		}
		if rest != nil {
			rest(yield)
		}
	}
}

// validated yields the valid ids, and an error instead of the first invalid one. The error has its number, and that of the
// check.
func validated(ids iter.Seq2[string, error], check func(string) error, what string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		n := 0
		for id, err := range ids {
			if n++; err == nil {
				if invalid := check(id); invalid != nil {
					err = fmt.Errorf("number %d of %s %w", n, what, invalid)
				}
			}
			if !yield(id, err) || err != nil {
				return
			}
		}
	}
}
