package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// pollEvery is far shorter than a client's interval, so that the wait between polls hardly affects the figures.
const pollEvery = 50 * time.Millisecond

// never is a percentage that no job reaches before it is complete.
const never = 101

// export runs the export of a group from kick-off to 200 and returns its duration.
func (d *deployment) export(ctx context.Context, group string) (bulkclient.Job, time.Duration, error) {
	return d.run(ctx, bulkclient.Request{Group: group})
}

// run runs an export from kick-off to 200 and returns its duration.
func (d *deployment) run(ctx context.Context, request bulkclient.Request) (bulkclient.Job, time.Duration, error) {
	began := time.Now()
	job, err := d.client.KickOff(ctx, request)
	if err != nil {
		return job, 0, err
	}
	if err := d.await(ctx, job, never); err != nil {
		return job, 0, err
	}
	return job, time.Since(began), nil
}

// manifest runs a job and returns its manifest.
func (d *deployment) manifest(ctx context.Context, group string) (bulkclient.Job, *bulkclient.Manifest, error) {
	job, _, err := d.export(ctx, group)
	if err != nil {
		return job, nil, err
	}
	manifest, err := d.client.Await(ctx, job)
	return job, manifest, err
}

// await returns when the job is complete, or has reached the percentage.
func (d *deployment) await(ctx context.Context, job bulkclient.Job, percent int) error {
	for {
		complete, done, err := d.poll(ctx, job)
		if err != nil || complete || done >= percent {
			return err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// pause waits that long, or until the context ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// poll requests the status once and returns whether the job is complete, and its progress in per cent.
func (d *deployment) poll(ctx context.Context, job bulkclient.Job) (complete bool, percent int, err error) {
	resp, err := d.get(ctx, job.StatusURL, "")
	if err != nil {
		return false, 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false, 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return true, 100, nil
	case http.StatusAccepted:
		// The header is absent before the plan is committed.
		if text := resp.Header.Get("X-Progress-Percent"); text != "" {
			percent, err = strconv.Atoi(text)
		}
		return false, percent, err
	default:
		return false, 0, fmt.Errorf("status: %s", resp.Status)
	}
}

// get sends a request with a token; encoding is the Accept-Encoding, "" for none.
func (d *deployment) get(ctx context.Context, url, encoding string) (*http.Response, error) {
	return d.getBy(ctx, http.DefaultClient, url, encoding)
}

func (d *deployment) getBy(ctx context.Context, client *http.Client, url, encoding string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	token, err := d.Token(ctx, "")
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if encoding == "" {
		encoding = "identity"
	}
	req.Header.Set("Accept-Encoding", encoding) // set explicitly, so that the transport does not decompress
	return client.Do(req)
}

// discard reads a response to its end and returns its length.
func discard(resp *http.Response) (int64, error) {
	n, err := io.Copy(io.Discard, resp.Body)
	return n, errors.Join(err, resp.Body.Close())
}
