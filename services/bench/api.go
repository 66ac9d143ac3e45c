package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sync/errgroup"
)

const (
	kickoffs = 2000
	polls    = 10000
)

// api measures the request rates of one API without workers, and the download rates through it.
func (b *bench) api(ctx context.Context) error {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return err
	}
	d, err := b.deploy(ctx, p, 0)
	if err != nil {
		return err
	}
	defer d.stop()
	f := &b.report.API
	token, err := d.Token(ctx, "")
	if err != nil {
		return err
	}
	var jobs []string // status URLs
	m, err := load(ctx, callers, kickoffs,
		func(int) vegeta.Target { return d.kickOff("ten", token) },
		func(r *vegeta.Result) error {
			jobs = append(jobs, r.Headers.Get("Content-Location"))
			return wantAccepted(r)
		})
	if err != nil {
		return err
	}
	f.KickOffs = figuresOf(m)
	m, err = load(ctx, callers, polls,
		func(i int) vegeta.Target { return authorized(http.MethodGet, jobs[i%len(jobs)], token) },
		wantAccepted) // there is no worker: no job completes
	if err != nil {
		return err
	}
	f.Polls = figuresOf(m)
	return b.downloadRates(ctx, p, f)
}

func figuresOf(m vegeta.Metrics) callFigures {
	return callFigures{
		Calls: m.Requests, AtOnce: callers, Rate: m.Throughput,
		P50: milliseconds(m.Latencies.P50), P99: milliseconds(m.Latencies.P99),
	}
}

// downloadRates fetches every file of the population: from MinIO, through the API as stored, and decompressed by the API.
func (b *bench) downloadRates(ctx context.Context, p population, f *apiFigures) error {
	d, err := b.deploy(ctx, p, 1)
	if err != nil {
		return err
	}
	defer d.stop()
	_, manifest, err := d.manifest(ctx, "all")
	if err != nil {
		return err
	}
	var files, direct []string
	for _, item := range manifest.Output {
		files = append(files, item.URL)
	}
	if direct, err = b.presigned(ctx, d); err != nil {
		return err
	}
	for round := range b.options.rounds + 1 {
		for _, way := range []struct {
			urls     []string
			encoding string
			with     func(context.Context, string, string) (*http.Response, error)
			into     *[]float64
		}{
			{direct, "", plain, &f.Direct},
			{files, "gzip", d.get, &f.Stored},
			{files, "", d.get, &f.Unpacked},
		} {
			rate, err := download(ctx, way.urls, way.encoding, way.with)
			if err != nil {
				return err
			}
			if round > 0 {
				*way.into = append(*way.into, rate)
			}
		}
	}
	return nil
}

// plain sends a request without a token: the URL is signed.
func plain(ctx context.Context, url, _ string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// download returns the MB/s of fetching the files, four at once.
func download(
	ctx context.Context, urls []string, encoding string, get func(context.Context, string, string) (*http.Response, error),
) (float64, error) {
	const atOnce = 4
	var total atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	began := time.Now()
	for _, from := range urls {
		group.Go(func() error {
			resp, err := get(ctx, from, encoding)
			if err != nil {
				return err
			}
			n, err := discard(resp)
			if resp.StatusCode != http.StatusOK {
				return errors.Join(fmt.Errorf("file: %s", resp.Status), err)
			}
			total.Add(n)
			return err
		})
	}
	err := group.Wait()
	return float64(total.Load()) / 1e6 / time.Since(began).Seconds(), err
}

// presigned returns presigned URLs of the job's files.
func (b *bench) presigned(ctx context.Context, d *deployment) ([]string, error) {
	store, err := b.servers.minio()
	if err != nil {
		return nil, err
	}
	var urls []string
	for object := range store.ListObjectsIter(ctx, d.bucket, minio.ListObjectsOptions{Prefix: "jobs/", Recursive: true}) {
		if object.Err != nil {
			return nil, object.Err
		}
		if strings.Contains(object.Key, "/_") {
			continue
		}
		signed, err := store.PresignedGetObject(ctx, d.bucket, object.Key, time.Hour, url.Values{})
		if err != nil {
			return nil, err
		}
		urls = append(urls, signed.String())
	}
	return urls, nil
}
