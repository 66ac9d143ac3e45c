package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/sluice/client"
)

type options struct {
	patients, workers, concurrency int
	binaries, data, json, profile  string
}

// figures are what a run found. Megabytes are 10^6 bytes of NDJSON before compression; memory is the peak of the
// process's resident set in MiB.
type figures struct {
	Patients         int       `json:"patients"`
	Resources        int64     `json:"resources"`
	Megabytes        float64   `json:"megabytes"`
	CeilingSeconds   float64   `json:"ceiling_seconds"`
	CeilingRate      float64   `json:"ceiling_mb_per_second"`
	ExportSeconds    float64   `json:"export_seconds"` // from kick-off to the manifest
	ExportRate       float64   `json:"export_mb_per_second"`
	Ratio            float64   `json:"ratio_to_ceiling"`
	Workers          int       `json:"workers"`
	Concurrency      int       `json:"concurrency"`
	WorkerPeakMemory []float64 `json:"worker_peak_mib"`
	APIPeakMemory    float64   `json:"api_peak_mib"`
	DownloadSeconds  float64   `json:"download_seconds"`
	DownloadRate     float64   `json:"download_mb_per_second"`
}

func run(ctx context.Context, opts options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if opts.data == "" {
		opts.data = filepath.Join(dir, "population")
		fmt.Fprintf(os.Stderr, "Generating %d patients ...\n", opts.patients)
		if _, err := synth.Generate(ctx, synth.Config{Patients: opts.patients, Seed: 1, Dir: opts.data}); err != nil {
			return err
		}
	}
	store, bucket, err := openStore()
	if err != nil {
		return err
	}
	if err := store.EnsureBucket(ctx); err != nil {
		return err
	}
	result := figures{Patients: opts.patients, Workers: opts.workers, Concurrency: opts.concurrency}

	fmt.Fprintln(os.Stderr, "Measuring the ceiling: the same files through gzip and into the store ...")
	began := time.Now()
	bytes, err := ceiling(ctx, store, opts.data, opts.workers*opts.concurrency)
	if err != nil {
		return fmt.Errorf("ceiling: %w", err)
	}
	result.CeilingSeconds = time.Since(began).Seconds()
	result.CeilingRate = float64(bytes) / 1e6 / result.CeilingSeconds
	if _, err := store.DeletePrefix(ctx, ceilingPrefix); err != nil {
		return err
	}

	fmt.Fprintln(os.Stderr, "Exporting the group of all patients ...")
	d, err := deploy(ctx, opts, dir, bucket)
	if err != nil {
		return err
	}
	defer d.stop()
	profiled := make(chan error, 1)
	go func() { profiled <- d.profile(ctx, opts.profile) }()
	if err := errors.Join(d.export(ctx, &result), <-profiled); err != nil {
		return err
	}
	result.Ratio = result.ExportRate / result.CeilingRate
	if err := result.print(out); err != nil {
		return err
	}
	if opts.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(opts.json, append(text, '\n'), 0o644)
}

// export kicks off, waits for the manifest, and then downloads everything.
func (d *deployment) export(ctx context.Context, result *figures) error {
	c, err := client.New(client.Config{Base: d.base, Tokens: d, Parallel: 4})
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	job, err := c.KickOff(ctx, client.Request{Group: "all"})
	if err != nil {
		return err
	}
	if err := d.finished(ctx, job.StatusURL); err != nil {
		return err
	}
	result.ExportSeconds = time.Since(began).Seconds()
	for _, worker := range d.workers {
		result.WorkerPeakMemory = append(result.WorkerPeakMemory, worker.peakMemory())
	}

	manifest, err := c.Await(ctx, job)
	if err != nil {
		return err
	}
	began = time.Now()
	for _, item := range manifest.Output {
		if item.Count != nil {
			result.Resources += *item.Count
		}
		n, err := d.download(ctx, item.URL)
		if err != nil {
			return err
		}
		result.Megabytes += float64(n) / 1e6
	}
	result.DownloadSeconds = time.Since(began).Seconds()
	result.DownloadRate = result.Megabytes / result.DownloadSeconds
	result.ExportRate = result.Megabytes / result.ExportSeconds
	result.APIPeakMemory = d.api.peakMemory()
	return nil
}

// finished polls far more often than a client may, so that the wait between two polls is no part of the figure.
func (d *deployment) finished(ctx context.Context, status string) error {
	for {
		resp, err := d.get(ctx, status)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil {
			return err
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return nil
		case http.StatusAccepted, http.StatusTooManyRequests:
		default:
			return fmt.Errorf("status: %s", resp.Status)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// profileSeconds is how long the first worker is profiled, from about the kick-off on.
const profileSeconds = 5

func (d *deployment) profile(ctx context.Context, file string) (err error) {
	if file == "" {
		return nil
	}
	resp, err := d.get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.workers[0].private, profileSeconds))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

func (d *deployment) download(ctx context.Context, url string) (int64, error) {
	resp, err := d.get(ctx, url)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("file: %s", resp.Status))
	}
	return n, errors.Join(err, resp.Body.Close())
}

func (d *deployment) get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	token, err := d.Token(ctx, "")
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return http.DefaultClient.Do(req)
}

func (f figures) print(out io.Writer) error {
	memory := make([]string, len(f.WorkerPeakMemory))
	for i, mib := range f.WorkerPeakMemory {
		memory[i] = fmt.Sprintf("%.0f", mib)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nwhat\tfigure\n----\t------\n")
	fmt.Fprintf(w, "exported\t%.0f MB, %d resources, %d patients\n", f.Megabytes, f.Resources, f.Patients)
	fmt.Fprintf(w, "ceiling: read, gzip, put\t%.1f s, %.0f MB/s\n", f.CeilingSeconds, f.CeilingRate)
	fmt.Fprintf(w, "export, kick-off to manifest\t%.1f s, %.0f MB/s, %.0f resources/s\n",
		f.ExportSeconds, f.ExportRate, float64(f.Resources)/f.ExportSeconds)
	fmt.Fprintf(w, "ratio to the ceiling\t%.2f\n", f.Ratio)
	fmt.Fprintf(w, "peak memory of each worker\t%s MiB (%d, %d units at once)\n",
		strings.Join(memory, ", "), f.Workers, f.Concurrency)
	fmt.Fprintf(w, "peak memory of the API\t%.0f MiB\n", f.APIPeakMemory)
	fmt.Fprintf(w, "download, one file after another\t%.1f s, %.0f MB/s\n", f.DownloadSeconds, f.DownloadRate)
	return w.Flush()
}

func openStore() (*objects.Store, string, error) {
	place, err := s3()
	if err != nil {
		return nil, "", err
	}
	secret, _ := place.User.Password()
	bucket := "bench-" + uuid.NewString()
	store, err := objects.Open(objects.Config{
		Endpoint: place.Scheme + "://" + place.Host, AccessKey: place.User.Username(), SecretKey: secret, Bucket: bucket,
	})
	return store, bucket, err
}
