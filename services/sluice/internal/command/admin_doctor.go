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

// doctorFlags say what is looked at besides Redis. What is given nowhere is left out, and it is said.
type doctorFlags struct {
	operateFlags
	endpoint, bucket, region     string
	issuers, groups, access      string
	sourceDatabase, directoryURL string
}

func (a *app) doctor(admin *adminFlags) *cobra.Command {
	flags := doctorFlags{operateFlags: operateFlags{adminFlags: admin}}
	cmd := flags.looks(&cobra.Command{
		Use:   "doctor",
		Short: "Check every dependency and the state of the deployment, and say what to do",
		Long: `Doctor checks everything that a deployment needs, and for each thing says whether it is good, to be looked at
(warning) or bad, and what to do. It ends with 1 when something is bad.

It looks at Redis (reachable, version, eviction, append-only file, memory), at workers, schedulers, queues, the intake,
purges and jobs, and at what the variables of the services name: the object store (SLUICE_S3_ENDPOINT,
SLUICE_S3_ACCESS_KEY, SLUICE_S3_SECRET_KEY, SLUICE_S3_BUCKET), PostgreSQL (SLUICE_SOURCE_URL, SLUICE_DIRECTORY_URL,
SLUICE_DATABASE_URL), and the files SLUICE_TOKEN_ISSUERS_FILE, SLUICE_GROUPS_DIR and SLUICE_ACCESS_FILE. It compares
the clocks of all of them with that of this machine. All that it writes is one object under doctor/, which it deletes.`,
		Args: cobra.NoArgs,
		RunE: a.looking(&flags.operateFlags, func(ctx context.Context, o *ops.Operator, _ []string) error {
			patient, left, err := flags.patient()
			if err != nil {
				return err
			}
			if patient.Objects != nil {
				defer patient.Objects.Close()
			}
			return a.printFindings(&flags, o.Doctor(ctx, patient), left)
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
		cmd.Flags().StringVar(flag.at, flag.name, "", flag.what+"; default: the variable "+flag.variable)
	}
	return cmd
}

// patient returns what is to be looked at, and names what is left out.
func (f *doctorFlags) patient() (patient ops.Patient, left []string, err error) {
	trust := config.Trust{CAFile: orVariable(f.caFile, "SLUICE_CA_FILE")}
	roots, err := trust.Roots()
	if err != nil {
		return patient, nil, usageError{err}
	}
	if endpoint := orVariable(f.endpoint, "SLUICE_S3_ENDPOINT"); endpoint == "" {
		left = append(left, "object store")
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
		left = append(left, "postgresql")
	}
	if file := orVariable(f.issuers, "SLUICE_TOKEN_ISSUERS_FILE"); file == "" {
		left = append(left, "issuers")
	} else {
		patient.Files = append(patient.Files, ops.File{
			Name: "issuers", Advice: "mend the file: docs/access.md",
			Check: func(context.Context) error { _, err := config.LoadIssuers(file); return err },
		})
	}
	return f.directoryFiles(patient), left, nil
}

func (f *doctorFlags) objects(trust config.Trust, endpoint string) (*objects.Store, error) {
	accessKey, accessErr := variable("SLUICE_S3_ACCESS_KEY")
	secretKey, secretErr := variable("SLUICE_S3_SECRET_KEY")
	if err := errors.Join(accessErr, secretErr); err != nil {
		return nil, err
	}
	place := config.Objects{
		Trust: trust, Endpoint: endpoint, AccessKey: accessKey, SecretKey: secretKey, SSE: os.Getenv("SLUICE_S3_SSE"),
		Bucket: orVariable(f.bucket, "SLUICE_S3_BUCKET"), Region: orVariable(f.region, "SLUICE_S3_REGION"),
	}
	if place.Bucket == "" {
		place.Bucket = "sluice" // as the services
	}
	store, err := place.Open(nil)
	if err != nil {
		return nil, usageError{err}
	}
	return store, nil
}

func (f *doctorFlags) directoryFiles(patient ops.Patient) ops.Patient {
	if dir := orVariable(f.groups, "SLUICE_GROUPS_DIR"); dir != "" {
		patient.Files = append(patient.Files, ops.File{
			Name: "groups", Advice: "mend the folder: docs/access.md", Check: func(ctx context.Context) error {
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
			Name: "grants", Advice: "mend the file: docs/access.md",
			Check: func(context.Context) error { _, err := filedir.OpenAccess(file); return err },
		})
	}
	return patient
}

// verdict is an error when a finding is bad.
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

func (a *app) printFindings(f *doctorFlags, findings []ops.Finding, left []string) error {
	type findingOutput struct {
		Check   string `json:"check"`
		Verdict string `json:"verdict"`
		Detail  string `json:"detail"`
		Advice  string `json:"advice,omitempty"`
	}
	output := struct {
		Findings []findingOutput `json:"findings"`
		Left     []string        `json:"not_looked_at"`
	}{[]findingOutput{}, append([]string{}, left...)}
	rows := [][]string{{"check", "verdict", "found"}}
	for _, one := range findings {
		output.Findings = append(output.Findings, findingOutput{one.Check, string(one.Verdict), one.Detail, one.Advice})
		rows = append(rows, []string{one.Check, string(one.Verdict), printable(one.Detail)})
		if one.Advice != "" {
			rows = append(rows, []string{"", "", "-> " + one.Advice})
		}
	}
	for _, name := range left {
		rows = append(rows, []string{name, "-", "not looked at: nothing says where it is"})
	}
	if f.json {
		return errors.Join(a.printJSON(output), verdict(findings))
	}
	return errors.Join(a.printColumns(rows), verdict(findings))
}
