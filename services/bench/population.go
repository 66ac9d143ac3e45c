package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// population is a loaded database with its groups, and a grant of everything for the benchmark's subject.
type population struct {
	database  string
	resources int64
	megabytes float64 // of NDJSON
}

// population returns a population of that size. The first call for a size generates and loads it.
func (b *bench) population(ctx context.Context, patients int) (population, error) {
	if p, there := b.populations[patients]; there {
		return p, nil
	}
	say("generating and loading %d patients ...", patients)
	data := filepath.Join(b.dir, fmt.Sprintf("population-%d", patients))
	if _, err := synth.Generate(ctx, synth.Config{Patients: patients, Seed: 1, Dir: data}); err != nil {
		return population{}, err
	}
	database, err := b.servers.newDatabase(ctx, fmt.Sprintf("population_%d", patients))
	if err != nil {
		return population{}, err
	}
	began := time.Now()
	if err := b.sluice(ctx, "load", "--database", database, data); err != nil {
		return population{}, err
	}
	took := time.Since(began)
	err = b.sluice(ctx, "admin", "grant", "set", "--database", database, "--issuer", development.IssuerName,
		"--subject", subject, "--types", "all", "--groups", "all", "--patients", "all",
		"--level", "group", "--level", "patient", "--level", "system")
	if err := errors.Join(err, os.RemoveAll(data)); err != nil {
		return population{}, err
	}
	p := population{database: database}
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return population{}, err
	}
	var bytes int64
	err = conn.QueryRow(ctx, "SELECT sum(resources)::bigint, sum(bytes)::bigint FROM type_stats").Scan(&p.resources, &bytes)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return population{}, err
	}
	p.megabytes = float64(bytes) / 1e6
	b.populations[patients] = p
	b.report.Loads = append(b.report.Loads, loadFigures{
		Patients: patients, Resources: p.resources, Megabytes: p.megabytes, Seconds: took.Seconds(),
	})
	return p, nil
}
