package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	costsPatients = 2560             // five chunks of a cohort
	costsIdle     = 10 * time.Second // without units: the commands that do not belong to units
)

// costFigures is what a unit costs the stores: the figures of docs/scale.md.
type costFigures struct {
	Units        int     `json:"units"`
	Files        int     `json:"files"`
	Megabytes    float64 `json:"megabytes"` // of NDJSON
	Stored       float64 `json:"stored_megabytes"`
	Seconds      float64 `json:"seconds"`
	IdleCommands float64 `json:"redis_commands_per_second_idle"` // an API, a scheduler and a worker; those in scripts too
	IdleCPU      float64 `json:"redis_cpu_idle"`                 // of a processor
	Commands     float64 `json:"redis_commands_per_unit"`
	CPU          float64 `json:"redis_cpu_milliseconds_per_unit"`
	Requests     float64 `json:"store_requests_per_unit"`
	Writes       float64 `json:"store_writes_per_unit"`
	Kept         float64 `json:"redis_bytes_of_a_unit"` // of a complete job, files included
}

// tally is what Redis says of itself.
type tally struct{ commands, cpu float64 }

// costs counts what the units of a population's export ask of Redis and of the object store.
func (b *bench) costs(ctx context.Context) (err error) {
	p, err := b.population(ctx, costsPatients)
	if err != nil {
		return err
	}
	var requests, writes, bytes atomic.Int64
	target := &url.URL{Scheme: b.servers.s3.Scheme, Host: b.servers.s3.Host}
	store := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			requests.Add(1)
			if r.In.Method == http.MethodPut || r.In.Method == http.MethodPost {
				writes.Add(1)
				bytes.Add(r.In.ContentLength)
			}
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
	})
	defer store.Close()
	d, err := b.deploy(ctx, p, 0)
	if err != nil {
		return err
	}
	defer d.stop()
	worker, err := d.startWorker("SLUICE_S3_ENDPOINT="+store.URL, "SLUICE_WORKER_CONCURRENCY=3", "SLUICE_WORKER_EXPRESS=2",
		// Units just too large to be short, so that there are some fifty of them.
		fmt.Sprintf("SLUICE_UNIT_BYTES=%d", 17<<20), fmt.Sprintf("SLUICE_FILE_BYTES=%d", 26<<20))
	if err != nil {
		return err
	}
	if err := worker.waitReady(ctx); err != nil {
		return err
	}
	options, err := redis.ParseURL(d.redis)
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer func() { err = errors.Join(err, client.Close()) }()

	f := &b.report.Costs
	before, err := tell(ctx, client)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(costsIdle):
	}
	after, err := tell(ctx, client)
	if err != nil {
		return err
	}
	f.IdleCommands = (after.commands - before.commands) / costsIdle.Seconds()
	f.IdleCPU = (after.cpu - before.cpu) / costsIdle.Seconds()

	before = after
	requests.Store(0)
	writes.Store(0)
	bytes.Store(0)
	job, took, err := d.export(ctx, "all")
	if err != nil {
		return err
	}
	if after, err = tell(ctx, client); err != nil {
		return err
	}
	manifest, err := d.client.Await(ctx, job)
	if err != nil {
		return err
	}
	claims := len(worker.claims())
	units := float64(claims)
	f.Units, f.Files, f.Megabytes, f.Seconds = claims, len(manifest.Output), p.megabytes, took.Seconds()
	f.Stored = float64(bytes.Load()) / 1e6
	f.Commands = (after.commands - before.commands - f.IdleCommands*f.Seconds) / units
	f.CPU = (after.cpu - before.cpu - f.IdleCPU*f.Seconds) * 1000 / units
	f.Requests, f.Writes = float64(requests.Load())/units, float64(writes.Load())/units

	weight, err := weigh(ctx, d.redis, "sluice:{"+lastPart(job.StatusURL)+"}:*")
	if err != nil {
		return err
	}
	f.Kept = float64(weight) / units
	return nil
}

// tell returns how many commands Redis has done, those within scripts too, and how many seconds of a processor it has
// had.
func tell(ctx context.Context, client *redis.Client) (t tally, err error) {
	said, err := client.Info(ctx, "commandstats", "cpu").Result()
	if err != nil {
		return t, err
	}
	for line := range strings.Lines(said) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var n float64
		switch {
		case strings.HasPrefix(name, "cmdstat_"):
			calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			n, err = strconv.ParseFloat(calls, 64)
			t.commands += n
		case name == "used_cpu_sys" || name == "used_cpu_user":
			n, err = strconv.ParseFloat(value, 64)
			t.cpu += n
		}
		if err != nil {
			return t, fmt.Errorf("what Redis says of itself: %w", err)
		}
	}
	return t, nil
}
