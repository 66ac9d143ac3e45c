package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/token/development"
)

const (
	floodKickOffs = 10000 // of the flooding subject
	neighbours    = 200   // other subjects
	neighbourJobs = 5     // kick-offs of each: the default of JOB_LIMIT
)

// flood measures the kick-offs of 200 subjects while another one kicks off as fast as it can, with the default limits.
func (b *bench) flood(ctx context.Context) error {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return err
	}
	if err := b.grantNeighbours(ctx, p); err != nil {
		return err
	}
	f := &b.report.Flood
	for range b.options.rounds {
		d, err := b.deployWith(ctx, p, 0, nil)
		if err != nil {
			return err
		}
		err = d.flood(ctx, f)
		d.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// grantNeighbours lets every subject of the section export the group of ten.
func (b *bench) grantNeighbours(ctx context.Context, p population) error {
	var file strings.Builder
	for _, name := range append(neighbourNames(), subject) {
		fmt.Fprintf(&file, "- {issuer: %q, subject: %s, types: all, groups: all, patients: all}\n", development.IssuerName, name)
	}
	path := filepath.Join(b.dir, "neighbours.yaml")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		return err
	}
	return b.sluice(ctx, "admin", "grant", "import", "--yes", "--audit-log", filepath.Join(b.dir, "admin-audit.ndjson"),
		"--database", p.database, path)
}

func neighbourNames() []string {
	names := make([]string, neighbours)
	for i := range names {
		names[i] = fmt.Sprintf("neighbour-%d", i)
	}
	return names
}

// flood is one round: the neighbours alone, and during the flood.
func (d *deployment) flood(ctx context.Context, f *floodFigures) error {
	tokens := map[string]string{}
	for _, name := range append(neighbourNames(), subject) {
		signed, err := d.issuer.Sign(name, "system/*.rs", d.base, time.Hour, time.Now())
		if err != nil {
			return err
		}
		tokens[name] = signed
	}
	alone, err := d.neighbours(ctx, tokens)
	if err != nil {
		return err
	}

	var flood vegeta.Metrics
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		flood, err = load(groupCtx, callers, floodKickOffs,
			func(int) vegeta.Target { return d.kickOff("ten", tokens[subject]) },
			func(r *vegeta.Result) error {
				if r.Code != http.StatusAccepted && r.Code != http.StatusTooManyRequests {
					return fmt.Errorf("flood: status %d", r.Code)
				}
				return nil
			})
		return err
	})
	beside, err := d.neighbours(groupCtx, tokens)
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	kept, err := weigh(ctx, d.redis, "sluice:r*") // running jobs and rates
	if err != nil {
		return err
	}
	f.Rate = append(f.Rate, flood.Rate)
	f.Accepted = max(f.Accepted, flood.StatusCodes[strconv.Itoa(http.StatusAccepted)])
	f.Alone, f.Beside = append(f.Alone, alone), append(f.Beside, beside)
	f.Ratio = append(f.Ratio, beside/alone)
	f.Kept = append(f.Kept, float64(kept)/(neighbours+1))
	return nil
}

// neighbours has each subject kick off as many jobs as it may have, one request after another, and returns the 99th
// percentile of the latencies in ms. It cancels the jobs afterwards.
func (d *deployment) neighbours(ctx context.Context, tokens map[string]string) (float64, error) {
	const count = neighbours * neighbourJobs
	names := neighbourNames()
	token := func(i int) string { return tokens[names[i%neighbours]] }
	var jobs []string // status URLs, in the order of the kick-offs
	metrics, err := load(ctx, 1, count,
		func(i int) vegeta.Target { return d.kickOff("ten", token(i)) },
		func(r *vegeta.Result) error {
			jobs = append(jobs, r.Headers.Get("Content-Location"))
			return wantAccepted(r)
		})
	if err != nil {
		return 0, err
	}
	_, err = load(ctx, callers, count,
		func(i int) vegeta.Target { return authorized(http.MethodDelete, jobs[i], token(i)) },
		wantAccepted)
	return milliseconds(metrics.Latencies.P99), err
}

// kickOff returns a kick-off request for the group.
func (d *deployment) kickOff(group, token string) vegeta.Target {
	return authorized(http.MethodGet, d.base+"/Group/"+group+"/$export", token)
}
