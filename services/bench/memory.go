package main

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// memory measures the size of a waiting job and of a completed job in Redis.
func (b *bench) memory(ctx context.Context) (err error) {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return err
	}
	const jobs = 1000
	waiting, err := b.deploy(ctx, p, 0)
	if err != nil {
		return err
	}
	defer waiting.stop()
	before, err := weigh(ctx, waiting.redis, "*")
	if err != nil {
		return err
	}
	for range jobs {
		if _, err := waiting.client.KickOff(ctx, bulkclient.Request{Group: "ten"}); err != nil {
			return err
		}
	}
	after, err := weigh(ctx, waiting.redis, "*")
	if err != nil {
		return err
	}
	f := &b.report.Memory
	f.WaitingJob = float64(after-before) / jobs

	// Small files, so that there are many of them.
	d, err := b.deploy(ctx, p, 1, "SLUICE_UNIT_BYTES=16777216", "SLUICE_FILE_BYTES=4194304")
	if err != nil {
		return err
	}
	defer d.stop()
	job, manifest, err := d.manifest(ctx, "all")
	if err != nil {
		return err
	}
	small, smallManifest, err := d.manifest(ctx, "ten")
	if err != nil {
		return err
	}
	heavy, err := weigh(ctx, d.redis, "sluice:{"+lastPart(job.StatusURL)+"}:*")
	if err != nil {
		return err
	}
	light, err := weigh(ctx, d.redis, "sluice:{"+lastPart(small.StatusURL)+"}:*")
	if err != nil {
		return err
	}
	f.Files, f.SmallFiles = len(manifest.Output), len(smallManifest.Output)
	f.CompleteJob = float64(light)
	f.File = float64(heavy-light) / float64(f.Files-f.SmallFiles)
	return nil
}

func lastPart(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// weigh returns the memory usage of the keys that Redis reports.
func weigh(ctx context.Context, url, pattern string) (total int64, err error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return 0, err
	}
	store := redis.NewClient(opts)
	defer func() { err = errors.Join(err, store.Close()) }()
	found := 0
	keys := store.Scan(ctx, 0, pattern, 1000).Iterator()
	for keys.Next(ctx) {
		bytes, err := store.MemoryUsage(ctx, keys.Val(), 0).Result()
		if errors.Is(err, redis.Nil) {
			continue // deleted meanwhile
		}
		if err != nil {
			return 0, err
		}
		found++
		total += bytes
	}
	if found == 0 && pattern != "*" {
		return 0, errors.New("redis has no keys of the job")
	}
	return total, keys.Err()
}
