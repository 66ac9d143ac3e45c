package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/token/development"
)

const (
	floodKickOffs = 10000 // of the one subject
	neighbours    = 200   // subjects that ask beside it, one after the other
	neighbourAsks = 5     // kick-offs of each, as many as may be at work
)

// flood measures what 200 subjects notice when another one kicks off as fast as it can, with the limits as they come.
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
	return b.sluice(ctx, "admin", "grant", "import", "--database", p.database, path)
}

func neighbourNames() []string {
	names := make([]string, neighbours)
	for i := range names {
		names[i] = fmt.Sprintf("neighbour-%d", i)
	}
	return names
}

// flood is one round: the neighbours alone, and beside the flood.
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

	var asked, accepted atomic.Int64
	flood, floodCtx := errgroup.WithContext(ctx)
	began := time.Now()
	for range callers {
		flood.Go(func() error {
			for asked.Add(1) <= floodKickOffs {
				status, _, err := d.kickOff(floodCtx, tokens[subject])
				if err != nil {
					return err
				}
				switch status {
				case http.StatusAccepted:
					accepted.Add(1)
				case http.StatusTooManyRequests:
				default:
					return fmt.Errorf("flood: status %d", status)
				}
			}
			return nil
		})
	}
	beside, err := d.neighbours(floodCtx, tokens)
	if err := errors.Join(err, flood.Wait()); err != nil {
		return err
	}
	f.Rate = append(f.Rate, floodKickOffs/time.Since(began).Seconds())
	kept, err := weigh(ctx, d.redis, "sluice:r*") // running jobs and rates
	if err != nil {
		return err
	}
	f.Accepted = max(f.Accepted, accepted.Load())
	f.Alone, f.Beside = append(f.Alone, alone), append(f.Beside, beside)
	f.Ratio = append(f.Ratio, beside/alone)
	f.Kept = append(f.Kept, float64(kept)/(neighbours+1))
	return nil
}

// neighbours has each subject kick off and cancel, and returns the 99th percentile of the kick-offs in ms.
func (d *deployment) neighbours(ctx context.Context, tokens map[string]string) (float64, error) {
	var latencies []float64
	for range neighbourAsks {
		for _, name := range neighbourNames() {
			at := time.Now()
			status, location, err := d.kickOff(ctx, tokens[name])
			if err != nil {
				return 0, err
			}
			latencies = append(latencies, float64(time.Since(at).Microseconds())/1000)
			if status != http.StatusAccepted {
				return 0, fmt.Errorf("a kick-off of %s: status %d", name, status)
			}
			if status, _, err = d.ask(ctx, http.MethodDelete, location, tokens[name]); err != nil {
				return 0, err
			}
			if status != http.StatusAccepted {
				return 0, fmt.Errorf("a cancel of %s: status %d", name, status)
			}
		}
	}
	slices.Sort(latencies)
	return latencies[len(latencies)*99/100], nil
}

func (d *deployment) kickOff(ctx context.Context, token string) (status int, location string, err error) {
	return d.ask(ctx, http.MethodGet, d.base+"/Group/ten/$export", token)
}

func (d *deployment) ask(ctx context.Context, method, url, token string) (status int, location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Content-Location"), errors.Join(err, resp.Body.Close())
}
