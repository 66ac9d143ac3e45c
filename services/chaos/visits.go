package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// patience is how long a visit tries: longer than any fault, with the client's waits.
const patience = 6 * time.Minute

// visit does one of the things that clients do. An error is something that must not happen.
func (c *client) visit(ctx context.Context) (outcome string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	questions := c.truth.of(c.id)
	q := questions[c.choose.IntN(len(questions))]
	switch n := c.choose.IntN(10); {
	case n < 5:
		outcome, err = c.whole(ctx, q)
	case n < 6:
		outcome, err = c.cancelled(ctx, q)
	case n < 7:
		outcome, err = c.slow(ctx, q)
	case n < 8:
		_, err := c.bulk.KickOff(ctx, q.request) // and never comes back
		return "left", whatRemains(ctx, err)
	default:
		outcome, err = c.copy(ctx, q)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("not finished after %v", patience)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", q.name, err)
	}
	return outcome, err
}

// whatRemains returns the error if a client must never see it.
func whatRemains(ctx context.Context, err error) error {
	if err = classify(err); ctx.Err() == nil && errors.Is(err, errFailed) {
		return err
	}
	return nil
}

// whole exports everything into a folder, and compares it with the truth.
func (c *client) whole(ctx context.Context, q *question) (string, error) {
	dir := c.fresh()
	defer c.forget(dir)
	began, generation := time.Now(), c.truth.now()
	report, outcome, err := c.export(ctx, q, bulkclient.Options{Dir: dir, Resume: true}, began)
	if err != nil || outcome != "" {
		return outcome, err
	}
	if err := c.compare(q, dir, generation, report, began); err != nil {
		return "", err
	}
	if _, err := bulkclient.Verify(ctx, dir, nil); err != nil {
		return "", fmt.Errorf("verify: %w", err)
	}
	if c.choose.IntN(4) == 0 {
		if err := c.stranger(ctx, dir, report.StatusURL); err != nil {
			return "", err
		}
	}
	if c.choose.IntN(2) == 0 {
		return "exported and deleted", c.delete(ctx, bulkclient.Job{StatusURL: report.StatusURL}, began)
	}
	return "exported", nil
}

// export exports until it has succeeded. outcome is "" then; otherwise there is no export, for a reason that a fault
// explains.
func (c *client) export(
	ctx context.Context, q *question, opts bulkclient.Options, began time.Time,
) (report bulkclient.Report, outcome string, err error) {
	for {
		err = c.eager(ctx, func(ctx context.Context) (err error) {
			report, err = c.bulk.Export(ctx, q.request, opts)
			return err
		})
		switch err = classify(err); {
		case err == nil:
			return report, "", nil
		case ctx.Err() != nil:
			return report, "", ctx.Err()
		case errors.Is(err, errGone):
			if outcome, err := c.gone(began); err != nil || outcome != "" {
				return report, outcome, err
			}
		case errors.Is(err, errFailed):
			if c.events.excused(began) {
				return report, "failed", nil
			}
			return report, "", err
		case errors.Is(err, bulkclient.ErrMismatch), errors.Is(err, bulkclient.ErrFolder), errors.Is(err, bulkclient.ErrLast):
			return report, "", err
		}
		if err := pause(ctx, time.Second); err != nil {
			return report, "", err
		}
	}
}

// gone tells why a job of the client is unknown. It may be lost, or its time may be over: a client that was kept away for
// long finds nothing any more.
func (c *client) gone(began time.Time) (string, error) {
	switch {
	case c.events.lostSince(began.Add(-time.Second)):
		return "lost", nil
	case time.Since(began) > c.system.opts.retention:
		return "expired", nil
	}
	return "", errors.New("404 for a job that was neither cancelled nor lost nor old")
}

// compare compares a folder with the answers that are right.
func (c *client) compare(q *question, dir string, generation int, report bulkclient.Report, began time.Time) error {
	if report.Incomplete > 0 && !c.events.excused(began) {
		return fmt.Errorf("the manifest has errors: %s", strings.Join(report.Problems, "; "))
	}
	got, err := expect.LoadFolder(dir)
	if err != nil {
		return err
	}
	delete(got, "OperationOutcome") // what was left out by design is told
	var closest []string
	for _, each := range c.truth.between(generation) {
		want := c.truth.answer(q, each)
		if reflect.DeepEqual(fingerprints(got), want) {
			return nil
		}
		if differ := differences(got, want); closest == nil || len(differ) < len(closest) {
			closest = differ
		}
	}
	if report.Incomplete > 0 {
		return nil // they are told, and a fault explains them; the lines of the other units are checked by their ids only
	}
	return fmt.Errorf("job %s: not what it has to be: %s", report.Job, strings.Join(closest, ", "))
}

func differences(got, want fingerprints) (differ []string) {
	types := maps.Clone(want)
	maps.Copy(types, got)
	for _, typ := range slices.Sorted(maps.Keys(types)) {
		if got[typ] != want[typ] {
			differ = append(differ, fmt.Sprintf("%s has %d lines, want %d", typ, got[typ].Count, want[typ].Count))
		}
	}
	return differ
}

// stranger asks for the job and a file of it as somebody else: neither exists.
func (c *client) stranger(ctx context.Context, dir, status string) error {
	targets := []string{status}
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return err
	}
	var manifest struct{ Output []struct{ URL string } }
	if err := json.Unmarshal(text, &manifest); err != nil {
		return err
	}
	if len(manifest.Output) > 0 {
		targets = append(targets, manifest.Output[0].URL)
	}
	id := "few"
	if c.id == id {
		id = "app-1"
	}
	other, err := c.system.newClient(id, c.number, c.truth)
	if err != nil {
		return err
	}
	for _, target := range targets {
		resp, err := other.get(ctx, target, nil)
		if err != nil {
			continue // an outage
		}
		_ = resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			return fmt.Errorf("%s got %s for a URL of a foreign job", id, resp.Status)
		}
	}
	return nil
}

// delete deletes a job. Afterwards it is unknown.
func (c *client) delete(ctx context.Context, job bulkclient.Job, began time.Time) error {
	deleted := false
	for {
		err := classify(c.bulk.Cancel(ctx, job))
		switch {
		case err == nil:
			deleted = true
		case errors.Is(err, errGone):
			if deleted || c.events.lostSince(began) || time.Since(began) > c.system.opts.retention {
				return nil
			}
			deleted = true // the answer to an earlier attempt was lost, or the job was: the next status tells
		}
		if deleted {
			_, _, err := c.bulk.Poll(ctx, job, 1)
			if errors.Is(classify(err), errGone) {
				return nil
			}
			if err == nil {
				return errors.New("a deleted job has a status")
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

// cancelled cancels an export while it runs.
func (c *client) cancelled(ctx context.Context, q *question) (string, error) {
	began := time.Now()
	job, err := c.bulk.KickOff(ctx, q.request)
	if err != nil {
		return "refused", whatRemains(ctx, err)
	}
	if err := pause(ctx, time.Duration(c.choose.IntN(2000))*time.Millisecond); err != nil {
		return "", err
	}
	return "cancelled", c.delete(ctx, job, began)
}

// slow downloads one file slowly, in ranges, and perhaps deletes the job or lets it expire meanwhile. It may be cut off at
// any time; what it has got must be of the file.
func (c *client) slow(ctx context.Context, q *question) (string, error) {
	began := time.Now()
	job, err := c.bulk.KickOff(ctx, q.request)
	if err != nil {
		return "refused", whatRemains(ctx, err)
	}
	var manifest *bulkclient.Manifest
	for manifest == nil {
		err := c.eager(ctx, func(ctx context.Context) (err error) {
			manifest, err = c.bulk.Await(ctx, job)
			return err
		})
		switch err = classify(err); {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case errors.Is(err, errGone):
			return c.gone(began)
		case errors.Is(err, errFailed) && !c.events.excused(began):
			return "", err
		case errors.Is(err, errFailed):
			return "failed", nil
		}
	}
	if len(manifest.Output) == 0 {
		return "empty", nil
	}
	item := manifest.Output[c.choose.IntN(len(manifest.Output))]
	deletes := c.choose.IntN(2) == 0
	var content bytes.Buffer
	var tag, digest string
	for {
		header := http.Header{"Accept-Encoding": {"gzip"}} // ranges are of the compressed form if its ETag is known
		if tag != "" {
			header["If-Range"] = []string{tag}
			header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", content.Len(), content.Len()+30_000)}
		}
		resp, err := c.get(ctx, item.URL, header)
		if err == nil {
			switch resp.StatusCode {
			case http.StatusOK:
				if tag != "" {
					return "", errors.New("a file has changed")
				}
				tag, digest = resp.Header.Get("ETag"), resp.Header.Get("Repr-Digest")
			case http.StatusPartialContent:
				_, _ = io.Copy(&content, resp.Body) // what came is kept; the next range continues
			}
			_ = resp.Body.Close() // of the first answer only the header is read
			switch resp.StatusCode {
			case http.StatusRequestedRangeNotSatisfiable:
				sum := sha256.Sum256(content.Bytes())
				if want := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"; digest != want {
					return "", fmt.Errorf("a file of %d bytes has the digest %s, want %s", content.Len(), want, digest)
				}
				return "downloaded slowly", nil
			case http.StatusNotFound:
				if deletes && content.Len() > 0 {
					return "deleted while downloading", nil
				}
				return c.gone(began)
			}
		}
		if deletes && content.Len() > 0 {
			if err := c.delete(ctx, job, began); err != nil {
				return "", err
			}
		}
		if err := pause(ctx, time.Duration(c.choose.IntN(3000))*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// copied is a copy that a client keeps up to date.
type copied struct {
	of    *question
	dir   string
	since time.Time
}

// copy brings the client's copy up to date by an incremental export, or begins one.
func (c *client) copy(ctx context.Context, q *question) (string, error) {
	if c.copied.of != nil && c.events.lostSince(c.copied.since) { // which snapshot its transactionTime means is lost, too
		c.forget(c.copied.dir)
		c.copied = copied{}
	}
	opts := bulkclient.Options{Dir: c.fresh(), Resume: true, Last: c.copied.dir}
	if c.copied.of != nil {
		q = c.copied.of
	} else if len(q.request.Types)+len(q.request.Patients) > 0 {
		q = c.truth.of(c.id)[0] // a whole one
	}
	began, generation := time.Now(), c.truth.now()
	report, outcome, err := c.export(ctx, q, opts, began)
	if err == nil && outcome == "" {
		err = c.compare(q, opts.Dir, generation, report, began)
	}
	c.forget(c.copied.dir)
	if err != nil || outcome != "" || report.Incomplete > 0 {
		c.forget(opts.Dir)
		c.copied = copied{}
		return outcome, err
	}
	outcome = "copy brought up to date"
	if c.copied.of == nil {
		outcome = "copy begun"
	}
	c.copied = copied{of: q, dir: opts.Dir, since: began}
	return outcome, nil
}
