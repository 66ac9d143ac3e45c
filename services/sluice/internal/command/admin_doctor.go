package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
)

// doctorFlags are the dependencies to check besides Redis. Those that are not configured are skipped and listed.
type doctorFlags map[string]*doctorFlag

type doctorFlag struct{ variable, what, value string }

// get returns the value of the flag or of its variable.
func (f doctorFlags) get(name string) string { return orVariable(f[name].value, f[name].variable) }

func (a *app) doctor() *cobra.Command {
	flags := doctorFlags{
		"s3-endpoint": {variable: "SLUICE_S3_ENDPOINT", what: "URL of the object store"},
		"s3-bucket":   {variable: "SLUICE_S3_BUCKET", what: "bucket of the object store"},
		"s3-region":   {variable: "SLUICE_S3_REGION", what: "region of the object store"},
		"issuers":     {variable: "SLUICE_TOKEN_ISSUERS_FILE", what: "file of token issuers"},
		"groups":      {variable: "SLUICE_GROUPS_DIR", what: "folder of groups"},
		"access":      {variable: "SLUICE_ACCESS_FILE", what: "file of grants"},
		"source":      {variable: "SLUICE_SOURCE_URL", what: "URL of the database of the clinical data"},
		"directory":   {variable: "SLUICE_DIRECTORY_URL", what: "URL of the database of groups and grants"},
	}
	cmd := a.reading(&cobra.Command{
		Use:   "doctor",
		Short: "Check the dependencies and the state of the deployment",
		Long: `Check everything that a deployment needs. Each finding is good, warning or bad, with advice. The exit code is 1
if a finding is bad.

It checks Redis (connection, version, eviction, append-only file, memory), workers, schedulers, queues, kick-offs,
purges and jobs, and the dependencies in the variables of the services: the object store (SLUICE_S3_ENDPOINT,
SLUICE_S3_ACCESS_KEY, SLUICE_S3_SECRET_KEY, SLUICE_S3_BUCKET), PostgreSQL (SLUICE_SOURCE_URL, SLUICE_DIRECTORY_URL,
SLUICE_DATABASE_URL), and the files SLUICE_TOKEN_ISSUERS_FILE, SLUICE_GROUPS_DIR and SLUICE_ACCESS_FILE. It compares
their clocks with the local one. It writes one object under doctor/ and deletes it.`,
	}, func(ctx context.Context, o *ops.Operator, _ []string) error {
		patient, skipped, err := a.patient(flags)
		if err != nil {
			return err
		}
		if patient.Objects != nil {
			defer patient.Objects.Close()
		}
		return a.printFindings(o.Doctor(ctx, patient), skipped)
	})
	for name, flag := range flags {
		cmd.Flags().StringVar(&flag.value, name, "", flag.what+"; default: "+flag.variable)
	}
	return cmd
}

// patient returns the dependencies to check, and the names of those that are not configured.
func (a *app) patient(f doctorFlags) (patient ops.DoctorConfig, skipped []string, err error) {
	trust := a.trust()
	roots, err := a.roots()
	if err != nil {
		return patient, nil, err
	}
	if endpoint := f.get("s3-endpoint"); endpoint == "" {
		skipped = append(skipped, "object store")
	} else if patient.Objects, err = f.objects(trust, endpoint); err != nil {
		return patient, nil, err
	}
	known := map[string]bool{}
	for _, database := range []struct{ name, flag, variable string }{
		{"source", f["source"].value, f["source"].variable},
		{"directory", f["directory"].value, f["directory"].variable},
		{"database", a.flags.database, "SLUICE_DATABASE_URL"},
	} {
		url := database.flag
		if url == "" {
			if url, err = variable(database.variable); err != nil {
				return patient, nil, err
			}
		}
		if url == "" || known[url] {
			continue
		}
		known[url] = true
		if err := pgdb.CheckURL(url); err != nil {
			return patient, nil, usage("--%s or %s: %w", database.name, database.variable, err)
		}
		patient.Databases = append(patient.Databases, ops.Database{
			Name: database.name, Config: pgdb.Config{URL: url, Roots: roots},
		})
	}
	if len(known) == 0 {
		skipped = append(skipped, "postgresql")
	}
	for _, file := range []struct {
		name, path, advice string
		check              func(ctx context.Context, path string) error
	}{
		{
			"issuers", f.get("issuers"), "correct the file (docs/access.md)",
			func(_ context.Context, path string) error { _, err := config.LoadIssuers(path); return err },
		},
		{
			"groups", f.get("groups"), "correct the folder (docs/access.md)",
			func(ctx context.Context, path string) error {
				groups, err := filedir.OpenGroups(ctx, path, nil, nil, slog.New(slog.DiscardHandler))
				if err != nil {
					return err
				}
				for _, l := range groups.LeftOut() {
					err = errors.Join(err, fmt.Errorf("%d left out: %s", l.Count, l.Reason.Text()))
				}
				return err
			},
		},
		{
			"grants", f.get("access"), "correct the file (docs/access.md)",
			func(_ context.Context, path string) error { _, err := filedir.OpenAccess(path); return err },
		},
	} {
		if file.path != "" {
			patient.Files = append(patient.Files, ops.File{
				Name: file.name, Advice: file.advice, Check: func(ctx context.Context) error { return file.check(ctx, file.path) },
			})
		} else if file.name == "issuers" { // groups and grants may be in a database
			skipped = append(skipped, file.name)
		}
	}
	return patient, skipped, nil
}

func (f doctorFlags) objects(trust config.Trust, endpoint string) (*objects.Store, error) {
	accessKey, accessErr := variable("SLUICE_S3_ACCESS_KEY")
	secretKey, secretErr := variable("SLUICE_S3_SECRET_KEY")
	if err := errors.Join(accessErr, secretErr); err != nil {
		return nil, err
	}
	settings := config.Objects{
		Trust: trust, Endpoint: endpoint, AccessKey: accessKey, SecretKey: secretKey, SSE: os.Getenv("SLUICE_S3_SSE"),
		Bucket: cmp.Or(f.get("s3-bucket"), "sluice"), // the services' default
		Region: f.get("s3-region"),
	}
	store, err := settings.Open(nil)
	if err != nil {
		return nil, wrong(fmt.Errorf("SLUICE_S3_ENDPOINT, SLUICE_S3_BUCKET: %w", err),
			given{"--s3-endpoint", "SLUICE_S3_ENDPOINT", f["s3-endpoint"].value != ""},
			given{"--s3-bucket", "SLUICE_S3_BUCKET", f["s3-bucket"].value != ""})
	}
	return store, nil
}

func (a *app) printFindings(findings []ops.Finding, skipped []string) error {
	rows, bad := []row{{"check", "verdict", "found"}}, 0
	for _, one := range findings {
		rows = append(rows, row{one.Check, one.Verdict, printable(one.Detail)})
		if one.Advice != "" {
			rows = append(rows, row{"", "", "-> " + one.Advice})
		}
		if one.Verdict == ops.Bad {
			bad++
		}
	}
	for _, name := range skipped {
		rows = append(rows, row{name, "-", "skipped: not configured"})
	}
	err := a.show(struct {
		Findings []ops.Finding `json:"findings"`
		Skipped  []string      `json:"skipped"`
	}{findings, append([]string{}, skipped...)}, rows)
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %s bad", bad, plural.Of(len(findings), "finding is", "findings are")))
	}
	return err
}
