package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// parameterFigures compares an export with parameters with the whole one, in pairs.
type parameterFigures struct {
	Name      string    `json:"name"`
	Resources int64     `json:"resources"` // exported with the parameters
	Of        int64     `json:"of"`        // exported by the whole one
	Seconds   []float64 `json:"seconds"`
	Whole     []float64 `json:"whole_seconds"`
	Ratio     []float64 `json:"ratio"` // how many times as fast
}

// parameters compares exports with parameters with whole ones, on one worker. Before each of the last two pairs one
// resource in a hundred changes.
func (b *bench) parameters(ctx context.Context) error {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return err
	}
	d, err := b.deploy(ctx, p, 1)
	if err != nil {
		return err
	}
	defer d.stop()
	observations := bulkclient.Request{Group: "all", Types: []string{"Observation"}}
	all := bulkclient.Request{Group: "all"}
	days, code, common := observations, observations, observations
	days.TypeFilters = []string{"Observation?date=ge2024-06-01&date=lt2024-06-20"}
	code.TypeFilters = []string{"Observation?code=http://loinc.org|4544-3"}
	common.TypeFilters = []string{"Observation?status=final,amended,preliminary,corrected"}
	reduced := observations
	reduced.Elements = []string{"id", "status"}
	for _, pair := range []struct {
		name        string
		with, whole bulkclient.Request
	}{
		{"patient level", bulkclient.Request{Level: export.PatientLevel}, all},
		{"system level", bulkclient.Request{Level: export.SystemLevel}, all},
		{"_typeFilter by date that keeps few", days, observations},
		{"_typeFilter by code that keeps few", code, observations},
		{"_typeFilter that keeps all", common, observations},
		{"_elements=id,status", reduced, observations},
	} {
		if err := b.compare(ctx, d, pair.name, pair.with, pair.whole); err != nil {
			return err
		}
	}
	for _, changes := range []struct{ name, of string }{
		{"_since where one in a hundred changed", "patient <> ''"},
		{"_since where one in a hundred changed, Practitioners too",
			"(patient <> '' OR type IN ('Location', 'Medication', 'Organization', 'Practitioner', 'PractitionerRole'))"},
	} {
		since, err := b.change(ctx, d, p, changes.of)
		if err != nil {
			return err
		}
		changed := all
		changed.Since = since
		if err := b.compare(ctx, d, changes.name, changed, all); err != nil {
			return err
		}
	}
	return nil
}

// compare measures the two exports in pairs. The first pair is not counted.
func (b *bench) compare(ctx context.Context, d *deployment, name string, with, whole bulkclient.Request) error {
	f := parameterFigures{Name: name}
	for round := range b.options.rounds + 1 {
		var seconds [2]float64
		for i := range 2 {
			which := (i + round) % 2
			job, took, err := d.run(ctx, []bulkclient.Request{with, whole}[which])
			if err != nil {
				return err
			}
			manifest, err := d.client.Await(ctx, job)
			if err != nil {
				return err
			}
			var resources int64
			for _, item := range manifest.Output {
				resources += *item.Count
			}
			*[]*int64{&f.Resources, &f.Of}[which] = resources
			seconds[which] = took.Seconds()
			if err := d.remove(ctx, job); err != nil {
				return err
			}
		}
		say("%s: %d of %d resources, %.2f s and %.2f s", name, f.Resources, f.Of, seconds[0], seconds[1])
		if round > 0 {
			f.Seconds, f.Whole = append(f.Seconds, seconds[0]), append(f.Whole, seconds[1])
			f.Ratio = append(f.Ratio, seconds[1]/seconds[0])
		}
	}
	b.report.Parameters = append(b.report.Parameters, f)
	return nil
}

// change exports the population, then loads a new version of one resource in a hundred of those that meet the condition. It
// returns the transactionTime of the export.
func (b *bench) change(ctx context.Context, d *deployment, p population, of string) (since string, err error) {
	job, manifest, err := d.manifest(ctx, "all")
	if err != nil {
		return "", err
	}
	if err := d.remove(ctx, job); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(b.dir, "changes-")
	if err != nil {
		return "", err
	}
	file, err := os.Create(filepath.Join(dir, "changes.ndjson"))
	if err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, p.database)
	if err != nil {
		return "", errors.Join(err, file.Close())
	}
	out := bufio.NewWriter(file)
	rows, _ := conn.Query(ctx, `SELECT jsonb_set(body::jsonb || '{"language": "en"}', '{meta}',
		coalesce(body::jsonb -> 'meta', '{}') - 'versionId' || jsonb_build_object('lastUpdated', $1::text))::text
		FROM resource WHERE ended IS NULL AND `+of+` AND hashtext(id) % 100 = 0`,
		time.Now().UTC().Format(time.RFC3339)) // rows has the error
	var line string
	_, err = pgx.ForEachRow(rows, []any{&line}, func() error {
		_, err := fmt.Fprintln(out, line)
		return err
	})
	if err := errors.Join(err, out.Flush(), file.Close(), conn.Close(ctx)); err != nil {
		return "", err
	}
	return manifest.TransactionTime, b.sluice(ctx, "load", "--database", p.database, dir)
}
