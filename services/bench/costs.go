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
	costsIdle     = 10 * time.Second // measures the commands that do not belong to units
)

// costFigures are the costs of a unit in the stores (docs/scale.md).
type costFigures struct {
	Units        int     `json:"units"`
	Files        int     `json:"files"`
	Megabytes    float64 `json:"megabytes"` // of NDJSON
	Stored       float64 `json:"stored_megabytes"`
	Seconds      float64 `json:"seconds"`
	IdleCommands float64 `json:"redis_commands_per_second_idle"` // of api, scheduler and worker; with those in scripts
	IdleCPU      float64 `json:"redis_cpu_idle"`                 // of a processor
	Commands     float64 `json:"redis_commands_per_unit"`
	CPU          float64 `json:"redis_cpu_milliseconds_per_unit"`
	Requests     float64 `json:"store_requests_per_unit"`
	Writes       float64 `json:"store_writes_per_unit"`
	Kept         float64 `json:"redis_bytes_of_a_unit"` // of a complete job, files included
}

// tally holds counters that Redis reports.
type tally struct{ commands, cpu float64 }

// costs counts the requests of the units of a population's export to Redis and to the object store.
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
			r.Out.Host = r.In.Host // the signature covers it
		},
	})
	defer store.Close()
	d, err := b.deploy(ctx, p, 0)
	if err != nil {
		return err
	}
	defer d.stop()
	worker, err := d.startWorker("SLUICE_S3_ENDPOINT="+store.URL, "SLUICE_WORKER_CONCURRENCY=3", "SLUICE_WORKER_EXPRESS=2",
		// The smallest units that are not short, so that there are about fifty.
		fmt.Sprintf("SLUICE_UNIT_BYTES=%d", 17<<20), fmt.Sprintf("SLUICE_FILE_BYTES=%d", 26<<20))
	if err != nil {
		return err
	}
	if _, err := worker.Ready(ctx); err != nil {
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
	if err := pause(ctx, costsIdle); err != nil {
		return err
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

// tell returns how many commands Redis has executed, including those in scripts, and its CPU seconds.
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
			return t, fmt.Errorf("read the counters of redis: %w", err)
		}
	}
	return t, nil
}
