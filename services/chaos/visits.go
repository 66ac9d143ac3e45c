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
		_, err := c.kickOff(ctx, q) // and never comes back
		return orRefused("left", err)
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

// outages are the refusals of an outage, by the API or by the load balancer.
var outages = []int{http.StatusServiceUnavailable, http.StatusBadGateway}

// orRefused returns the outcome of a kick-off that is not repeated. A refusal has to be one of an outage.
func orRefused(outcome string, err error) (string, error) {
	var refused *bulkclient.ServerError
	switch {
	case err == nil:
		return outcome, nil
	case errors.As(err, &refused) && !slices.Contains(outages, refused.Status):
		return "", err
	}
	return "refused", nil //nolint:nilerr // an outage is no violation
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
		return "exported and deleted", c.delete(ctx, bulkclient.Job{StatusURL: report.StatusURL})
	}
	return "exported", nil
}

// unknownKey is in the error of a signature by a key that is not published. If Redis has lost the keys, an API that has not
// read the new ones yet signs with an old one.
const unknownKey = "no such key"

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
			outcome, err := c.gone(err)
			return report, outcome, err
		case errors.Is(err, errFailed):
			if c.events.excused(began) {
				return report, "failed", nil
			}
			return report, "", err
		case strings.Contains(err.Error(), unknownKey) && c.events.lostSince(time.Now().Add(-2*time.Minute)):
			return report, "signed with a lost key", nil
		case errors.Is(err, bulkclient.ErrMismatch), errors.Is(err, bulkclient.ErrFolder), errors.Is(err, bulkclient.ErrLast):
			return report, "", err
		}
		if err := pause(ctx, time.Second); err != nil {
			return report, "", err
		}
	}
}

// gone tells why the client's job is unknown. It may be lost, or its time may be over: a client that was kept away for long
// finds nothing any more.
func (c *client) gone(answer error) (string, error) {
	live := time.Unix(0, c.live.Load())
	switch {
	case c.events.lostSince(live.Add(-time.Second)):
		return "lost", nil
	case time.Since(live) > c.system.opts.retention/2: // it counts from the start of the seal, which may wait for a server
		return "expired", nil
	case c.events.anySince(live.Add(-time.Second), func(f *fault) bool { return f.early }):
		return "expired early", nil
	}
	return "", fmt.Errorf("%w: the last job, %v, was neither deleted nor lost nor old", answer, c.job.Load())
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
		return nil // what is missing is told, and a fault explains it
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

// stranger asks for the job and a file of it as somebody else, and wants to delete them: neither exists.
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
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		for _, target := range targets {
			got, err := other.answered(ctx, method, target)
			if err != nil {
				return err
			}
			if got != http.StatusNotFound && (method == http.MethodGet || got != http.StatusMethodNotAllowed) {
				return fmt.Errorf("%s got %d for %s of a URL of a foreign job", id, got, method)
			}
		}
	}
	if got, err := c.answered(ctx, http.MethodGet, status); err != nil || got == http.StatusOK {
		return err
	}
	_, err = c.gone(fmt.Errorf("the job that %s may not delete: 404", id))
	return err
}

// answered sends a request until there is an answer that is no outage, and returns its status.
func (c *client) answered(ctx context.Context, method, target string) (status int, err error) {
	for {
		resp, err := c.request(ctx, method, target, nil)
		if err == nil {
			_ = resp.Body.Close() // only the status matters
			if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusUnauthorized {
				return resp.StatusCode, nil
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return 0, err
		}
	}
}

// delete deletes a job. Afterwards it is unknown.
func (c *client) delete(ctx context.Context, job bulkclient.Job) error {
	for tried := false; ; tried = true {
		err := classify(c.bulk.Cancel(ctx, job))
		if errors.Is(err, errGone) && !tried { // later an answer to an earlier attempt may have been lost
			_, err := c.gone(fmt.Errorf("delete: %w", err))
			return err
		}
		if err == nil || errors.Is(err, errGone) {
			break
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	status, err := c.answered(ctx, http.MethodGet, job.StatusURL)
	if err == nil && status != http.StatusNotFound && !c.events.lostSince(time.Now().Add(-time.Minute)) {
		err = fmt.Errorf("the status of a deleted job is %d", status)
	}
	return err
}

// cancelled cancels an export while it runs.
func (c *client) cancelled(ctx context.Context, q *question) (string, error) {
	job, err := c.kickOff(ctx, q)
	if err != nil {
		return orRefused("", err)
	}
	if err := pause(ctx, time.Duration(c.choose.IntN(2000))*time.Millisecond); err != nil {
		return "", err
	}
	return "cancelled", c.delete(ctx, job)
}

// slow downloads one file slowly, in ranges, and perhaps deletes the job or lets it expire meanwhile. It may be cut off at
// any time; what it has got must be of the file.
func (c *client) slow(ctx context.Context, q *question) (string, error) {
	began := time.Now()
	job, err := c.kickOff(ctx, q)
	if err != nil {
		return orRefused("", err)
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
			return c.gone(err)
		case errors.Is(err, errFailed) && !c.events.excused(began):
			return "", err
		case errors.Is(err, errFailed):
			return "failed", nil
		}
	}
	if len(manifest.Output) == 0 {
		return "", errors.New("the manifest has no file")
	}
	item := manifest.Output[c.choose.IntN(len(manifest.Output))]
	deletes, deleted := c.choose.IntN(2) == 0, false
	var content bytes.Buffer
	var tag, digest string
	for {
		header := http.Header{"Accept-Encoding": {"gzip"}} // ranges are of the compressed form if its ETag is known
		if tag != "" {
			header["If-Range"] = []string{tag}
			header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", content.Len(), content.Len()+30_000)}
		}
		resp, err := c.request(ctx, http.MethodGet, item.URL, header)
		if err == nil {
			if deleted && resp.StatusCode < http.StatusMultipleChoices && !c.events.lostSince(began) {
				_ = resp.Body.Close()
				return "", errors.New("a file of a deleted job is served")
			}
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
				if deleted {
					return "deleted while downloading", nil
				}
				return c.gone(errors.New("a file of the job: 404"))
			}
		}
		if deletes && !deleted && content.Len() > 0 {
			if err := c.delete(ctx, job); err != nil {
				return "", err
			}
			deleted = true
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
		if err != nil && opts.Last != "" && c.events.lostSince(c.copied.since) {
			outcome, err = "copy lost its snapshot", nil
		}
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
