package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// throughput exports the whole population with one worker and with two, each paired with the ceiling.
func (b *bench) throughput(ctx context.Context) error {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return err
	}
	for _, workers := range []int{1, 2} {
		figures := throughputFigures{Workers: workers, Resources: p.resources, Megabytes: p.megabytes}
		d, err := b.deploy(ctx, p, workers)
		if err != nil {
			return err
		}
		err = b.pairs(ctx, d, p, &figures)
		for _, worker := range d.workers {
			figures.WorkerPeak = append(figures.WorkerPeak, worker.PeakMemory())
		}
		figures.APIPeak = d.api.PeakMemory()
		d.stop()
		if err != nil {
			return err
		}
		b.report.Throughput = append(b.report.Throughput, figures)
	}
	return nil
}

// pairs measures the ceiling and an export in pairs, so that temporary load of the machine affects both. The first pair is
// not counted: it fills caches. Each measurement starts after the previous one has been cleaned up.
func (b *bench) pairs(ctx context.Context, d *deployment, p population, figures *throughputFigures) error {
	for round := range b.options.rounds + 1 {
		var ceiling float64
		var err error
		if round%2 == 0 { // so that neither always follows the other
			if ceiling, err = b.ceiling(ctx, d, p); err != nil {
				return err
			}
		}
		profiled := make(chan error, 1)
		go func() { profiled <- d.profile(ctx, b.options.profile) }()
		kickedOff := time.Now()
		job, took, err := d.export(ctx, "all")
		if err := errors.Join(err, <-profiled); err != nil {
			return err
		}
		stored, err := d.firstStored(ctx, job, kickedOff)
		if err != nil {
			return err
		}
		fetched, err := d.firstByte(ctx, job, kickedOff)
		if err != nil {
			return err
		}
		if err := d.whole(ctx, job, p); err != nil {
			return err
		}
		if err := d.remove(ctx, job); err != nil {
			return err
		}
		if round%2 == 1 {
			if ceiling, err = b.ceiling(ctx, d, p); err != nil {
				return err
			}
		}
		say("%d worker(s): ceiling %.0f MB/s, export %.0f MB/s, ratio %.2f", figures.Workers,
			p.megabytes/ceiling, p.megabytes/took.Seconds(), ceiling/took.Seconds())
		if round == 0 {
			continue
		}
		figures.Ceiling = append(figures.Ceiling, p.megabytes/ceiling)
		figures.Rate = append(figures.Rate, p.megabytes/took.Seconds())
		figures.Ratio = append(figures.Ratio, ceiling/took.Seconds())
		figures.FirstStored = append(figures.FirstStored, stored.Seconds())
		figures.FirstByte = append(figures.FirstByte, fetched.Seconds())
	}
	return nil
}

// whole fails unless the job has exported everything except the few shared resources that no patient's record references.
func (d *deployment) whole(ctx context.Context, job bulkclient.Job, p population) error {
	manifest, err := d.client.Await(ctx, job)
	if err != nil {
		return err
	}
	var exported int64
	for _, item := range manifest.Output {
		if item.Count == nil {
			return errors.New("a file has no count")
		}
		exported += *item.Count
	}
	const unnamed = 100 // upper bound: synth generates some locations and practitioners that no record references
	if len(manifest.Error) > 0 || exported < p.resources-unnamed || exported > p.resources {
		return fmt.Errorf("%d of %d resources were exported, with %d error files", exported, p.resources, len(manifest.Error))
	}
	return nil
}

// remove deletes the job and waits until its files are deleted, so that this does not affect the next measurement.
func (d *deployment) remove(ctx context.Context, job bulkclient.Job) error {
	if err := d.client.Cancel(ctx, job); err != nil {
		return err
	}
	return d.awaitEmpty(ctx, "jobs/"+lastPart(job.StatusURL)+"/")
}

// awaitEmpty waits until the bucket has no object below the prefix.
func (d *deployment) awaitEmpty(ctx context.Context, prefix string) error {
	for {
		left := 0
		err := d.store.List(ctx, prefix, func(objects.Info) error { left++; return nil })
		if err != nil || left == 0 {
			return err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// ceiling returns how many seconds the ceiling program takes for the population.
func (b *bench) ceiling(ctx context.Context, d *deployment, p population) (float64, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.binaries, "ceiling"))
	place := *b.servers.s3
	place.Path = "/" + d.bucket
	cmd.Env = []string{"CEILING_DATABASE=" + p.database, "CEILING_S3=" + place.String()}
	var said strings.Builder
	cmd.Stderr = &said
	text, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("ceiling: %w: %s", err, said.String())
	}
	var moved struct {
		Resources int64   `json:"resources"`
		Seconds   float64 `json:"seconds"`
	}
	if err := json.Unmarshal(text, &moved); err != nil {
		return 0, err
	}
	if moved.Resources != p.resources {
		return 0, fmt.Errorf("the ceiling moved %d resources of %d", moved.Resources, p.resources)
	}
	_, err = d.store.DeletePrefix(ctx, "ceiling/")
	return moved.Seconds, err
}

// firstStored returns how long after the kick-off the job's first file was in the store, by the store's clock, which
// is this machine's.
func (d *deployment) firstStored(ctx context.Context, job bulkclient.Job, from time.Time) (time.Duration, error) {
	var first time.Time
	err := d.store.List(ctx, "jobs/"+lastPart(job.StatusURL)+"/", func(o objects.Info) error {
		if !strings.Contains(o.Key, "/_") && (first.IsZero() || o.Modified.Before(first)) {
			first = o.Modified
		}
		return nil
	})
	if err == nil && first.IsZero() {
		err = errors.New("the job has no files")
	}
	return first.Sub(from), err
}

// firstByte returns how long after the kick-off a client that requests the manifest now has the first byte of a file.
func (d *deployment) firstByte(ctx context.Context, job bulkclient.Job, from time.Time) (time.Duration, error) {
	before := time.Now()
	waited := before.Sub(from)
	manifest, err := d.client.Await(ctx, job)
	if err != nil {
		return 0, err
	}
	resp, err := d.get(ctx, manifest.Output[0].URL, "gzip")
	if err != nil {
		return 0, err
	}
	_, err = io.ReadFull(resp.Body, make([]byte, 1))
	return waited + time.Since(before), errors.Join(err, resp.Body.Close())
}

// profileSeconds is how long the first worker is profiled, from about the kick-off on.
const profileSeconds = 4

func (d *deployment) profile(ctx context.Context, file string) (err error) {
	if file == "" {
		return nil
	}
	worker, err := d.workers[0].Ready(ctx)
	if err != nil {
		return err
	}
	resp, err := d.get(ctx, "http://"+worker["private"]+"/debug/pprof/profile?seconds="+strconv.Itoa(profileSeconds), "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	content, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return errors.Join(err, fmt.Errorf("profile: %s", resp.Status))
	}
	return os.WriteFile(file, content, 0o644)
}
