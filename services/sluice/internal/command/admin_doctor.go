package command

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
)

// doctorFlags are the dependencies to check besides Redis. Those that are not configured are skipped and listed.
type doctorFlags struct {
	redisFlags
	endpoint, bucket, region     string
	issuers, groups, access      string
	sourceDatabase, directoryURL string
}

func (a *app) doctor(admin *adminFlags) *cobra.Command {
	flags := doctorFlags{redisFlags: redisFlags{adminFlags: admin}}
	cmd := flags.reads(&cobra.Command{
		Use:   "doctor",
		Short: "Check the dependencies and the state of the deployment",
		Long: `Check everything that a deployment needs. Each finding is good, warning or bad, with advice. The exit code is 1
if a finding is bad.

It checks Redis (connection, version, eviction, append-only file, memory), workers, schedulers, queues, kick-offs,
purges and jobs, and the dependencies in the variables of the services: the object store (SLUICE_S3_ENDPOINT,
SLUICE_S3_ACCESS_KEY, SLUICE_S3_SECRET_KEY, SLUICE_S3_BUCKET), PostgreSQL (SLUICE_SOURCE_URL, SLUICE_DIRECTORY_URL,
SLUICE_DATABASE_URL), and the files SLUICE_TOKEN_ISSUERS_FILE, SLUICE_GROUPS_DIR and SLUICE_ACCESS_FILE. It compares
their clocks with the local one. It writes one object under doctor/ and deletes it.`,
		Args: cobra.NoArgs,
		RunE: a.reading(&flags.redisFlags, func(ctx context.Context, o *ops.Operator, _ []string) error {
			patient, skipped, err := flags.patient()
			if err != nil {
				return err
			}
			if patient.Objects != nil {
				defer patient.Objects.Close()
			}
			return a.printFindings(&flags, o.Doctor(ctx, patient), skipped)
		}),
	})
	for _, flag := range []struct {
		at             *string
		name, variable string
		what           string
	}{
		{&flags.endpoint, "s3-endpoint", "SLUICE_S3_ENDPOINT", "the object store"},
		{&flags.bucket, "s3-bucket", "SLUICE_S3_BUCKET", "its bucket"},
		{&flags.region, "s3-region", "SLUICE_S3_REGION", "its region"},
		{&flags.issuers, "issuers", "SLUICE_TOKEN_ISSUERS_FILE", "file of token issuers"},
		{&flags.groups, "groups", "SLUICE_GROUPS_DIR", "folder of groups"},
		{&flags.access, "access", "SLUICE_ACCESS_FILE", "file of grants"},
		{&flags.sourceDatabase, "source", "SLUICE_SOURCE_URL", "database of the clinical data"},
		{&flags.directoryURL, "directory", "SLUICE_DIRECTORY_URL", "database of groups and grants"},
	} {
		cmd.Flags().StringVar(flag.at, flag.name, "", flag.what+"; default: "+flag.variable)
	}
	return cmd
}

// patient returns the dependencies to check, and the names of those that are not configured.
func (f *doctorFlags) patient() (patient ops.Patient, skipped []string, err error) {
	trust := config.Trust{CAFile: orVariable(f.caFile, "SLUICE_CA_FILE")}
	roots, err := trust.Roots()
	if err != nil {
		return patient, nil, usageError{err}
	}
	if endpoint := orVariable(f.endpoint, "SLUICE_S3_ENDPOINT"); endpoint == "" {
		skipped = append(skipped, "object store")
	} else if patient.Objects, err = f.objects(trust, endpoint); err != nil {
		return patient, nil, err
	}
	known := map[string]bool{}
	for _, database := range []struct{ flag, flagName, variable, name string }{
		{f.sourceDatabase, "--source", "SLUICE_SOURCE_URL", "source"},
		{f.directoryURL, "--directory", "SLUICE_DIRECTORY_URL", "directory"},
		{f.database, "--database", "SLUICE_DATABASE_URL", "database"},
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
			return patient, nil, usage("%s or %s: %w", database.flagName, database.variable, err)
		}
		patient.Databases = append(patient.Databases, ops.Database{
			Name: database.name, Config: pgdb.Config{URL: url, Roots: roots},
		})
	}
	if len(known) == 0 {
		skipped = append(skipped, "postgresql")
	}
	if file := orVariable(f.issuers, "SLUICE_TOKEN_ISSUERS_FILE"); file == "" {
		skipped = append(skipped, "issuers")
	} else {
		patient.Files = append(patient.Files, ops.File{
			Name: "issuers", Advice: "correct the file (docs/access.md)",
			Check: func(context.Context) error { _, err := config.LoadIssuers(file); return err },
		})
	}
	return f.directoryFiles(patient), skipped, nil
}

func (f *doctorFlags) objects(trust config.Trust, endpoint string) (*objects.Store, error) {
	accessKey, accessErr := variable("SLUICE_S3_ACCESS_KEY")
	secretKey, secretErr := variable("SLUICE_S3_SECRET_KEY")
	if err := errors.Join(accessErr, secretErr); err != nil {
		return nil, err
	}
	settings := config.Objects{
		Trust: trust, Endpoint: endpoint, AccessKey: accessKey, SecretKey: secretKey, SSE: os.Getenv("SLUICE_S3_SSE"),
		Bucket: orVariable(f.bucket, "SLUICE_S3_BUCKET"), Region: orVariable(f.region, "SLUICE_S3_REGION"),
	}
	if settings.Bucket == "" {
		settings.Bucket = "sluice" // the services' default
	}
	store, err := settings.Open(nil)
	if err != nil {
		return nil, usageError{err}
	}
	return store, nil
}

func (f *doctorFlags) directoryFiles(patient ops.Patient) ops.Patient {
	if dir := orVariable(f.groups, "SLUICE_GROUPS_DIR"); dir != "" {
		patient.Files = append(patient.Files, ops.File{
			Name: "groups", Advice: "correct the folder (docs/access.md)", Check: func(ctx context.Context) error {
				groups, err := filedir.OpenGroups(dir, nil)
				if err != nil {
					return err
				}
				return groups.Check(ctx)
			},
		})
	}
	if file := orVariable(f.access, "SLUICE_ACCESS_FILE"); file != "" {
		patient.Files = append(patient.Files, ops.File{
			Name: "grants", Advice: "correct the file (docs/access.md)",
			Check: func(context.Context) error { _, err := filedir.OpenAccess(file); return err },
		})
	}
	return patient
}

// verdict is an error if a finding is bad.
func verdict(findings []ops.Finding) error {
	bad := 0
	for _, finding := range findings {
		if finding.Verdict == ops.Bad {
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d findings are bad", bad, len(findings))
	}
	return nil
}

func (a *app) printFindings(f *doctorFlags, findings []ops.Finding, skipped []string) error {
	type findingOutput struct {
		Check   string `json:"check"`
		Verdict string `json:"verdict"`
		Detail  string `json:"detail"`
		Advice  string `json:"advice,omitempty"`
	}
	output := struct {
		Findings []findingOutput `json:"findings"`
		Skipped  []string        `json:"not_looked_at"`
	}{[]findingOutput{}, append([]string{}, skipped...)}
	rows := [][]string{{"check", "verdict", "found"}}
	for _, one := range findings {
		output.Findings = append(output.Findings, findingOutput{one.Check, string(one.Verdict), one.Detail, one.Advice})
		rows = append(rows, []string{one.Check, string(one.Verdict), printable(one.Detail)})
		if one.Advice != "" {
			rows = append(rows, []string{"", "", "-> " + one.Advice})
		}
	}
	for _, name := range skipped {
		rows = append(rows, []string{name, "-", "skipped: not configured"})
	}
	if f.json {
		return errors.Join(a.printJSON(output), verdict(findings))
	}
	return errors.Join(a.printColumns(rows), verdict(findings))
}
