package pipeline

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// seal writes the manifest with the files of all units, and an error file about missing data. If units failed and none
// succeeded, the job fails instead (spec 3).
func (w *Worker) seal(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	done := 0
	var units export.Shortfall
	var numbers export.Balance
	errorFiles, err := w.writeErrors(ctx, lease, nil, func(out *files) error {
		err := w.Jobs.Results(ctx, job.ID, func(unit export.Unit, result export.Result) error {
			if len(job.Key) > 0 && slices.ContainsFunc(result.Files, func(f export.File) bool { return !f.Encrypted }) {
				// The API cannot serve it. Failing the job purges it.
				return export.Permanent("a worker without encryption wrote a part of it")
			}
			units.Add(unit, result)
			numbers.Add(job.Request, unit, result)
			switch {
			case result.Failure != "":
				return out.writeIssue(fhir.Outcome("error", "incomplete", failureText(job.Request, unit, result)))
			case unit.Kind.Writes():
				done++
			}
			return nil
		})
		for _, text := range job.Request.Ignored { // K-17
			if err == nil {
				err = out.writeIssue(fhir.Outcome("warning", "not-supported", text))
			}
		}
		for _, l := range units.LeftOutOf(job) {
			if err == nil {
				err = out.writeIssue(l.Outcome())
			}
		}
		return err
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	if units.Failed > 0 && done == 0 {
		return jobstore.Commit{}, export.Permanent("every part of it failed")
	}

	manifest := export.ManifestKey(job.ID, lease.Fence)
	digest, err := w.writeManifest(ctx, job, manifest, errorFiles)
	if err != nil {
		return jobstore.Commit{}, err
	}
	// By the clock of Redis, so that a wrong clock of this machine neither ends nor prolongs the retention.
	finished, err := w.Jobs.Time(ctx)
	if err != nil {
		return jobstore.Commit{}, err
	}
	finished = finished.Truncate(time.Millisecond)
	job.Finished = finished
	// What changed between `_until` and the snapshot is missing, so nothing can continue from there.
	if until := job.Request.Until; until.IsZero() || until.After(job.Snapshot) {
		if err := w.Jobs.NoteTransactionTime(ctx, job, job.TransactionTime()); err != nil {
			return jobstore.Commit{}, err
		}
	}
	return jobstore.Commit{
		Result: export.Result{Files: errorFiles},
		Seal: &jobstore.Seal{
			Manifest: manifest, Digest: digest, Resources: numbers.List(units.LeftOutOf(job)),
			Finished: finished, Expires: finished.Add(w.cfg.Retention),
		},
	}, nil
}

func failureText(request export.Request, unit export.Unit, result export.Result) string {
	switch {
	case unit.Kind == export.KindResolveReferences && request.Associated != "":
		return "Referenced resources and Provenance are missing: " + result.Failure + "."
	case unit.Kind == export.KindResolveReferences || unit.Scope == export.ScopeLeading:
		return "Referenced resources are missing: " + result.Failure + "."
	}
	if unit.Organized() {
		return fmt.Sprintf("The blocks of some patients (%s) are missing: %s.", unit.ID, result.Failure)
	}
	return fmt.Sprintf("A part of %s (%s) is missing: %s.", unit.Type, unit.ID, result.Failure)
}

// writeManifest returns the SHA-256 of the list.
func (w *Worker) writeManifest(
	ctx context.Context, job export.Job, key string, last []export.File,
) (digest string, err error) {
	ctx, span := telemetry.StartSpan(ctx, "manifest")
	defer func() { telemetry.EndSpan(span, err) }()
	object := w.Objects.Create(ctx, key, "application/x-ndjson")
	buffered := bufio.NewWriterSize(object, 32<<10)
	lines := json.NewEncoder(buffered)
	write := func(files []export.File) error {
		for _, file := range files {
			if err := lines.Encode(file); err != nil {
				return err
			}
		}
		return nil
	}
	err = w.Jobs.Results(ctx, job.ID, func(_ export.Unit, result export.Result) error { return write(result.Files) })
	if err == nil {
		err = write(last)
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("write manifest: %w", err), object.Abort())
	}
	stored, err := object.Commit()
	if err != nil {
		return "", fmt.Errorf("write manifest: %w", err)
	}
	return stored.SHA256, nil
}

// clear deletes the objects that only a running job needs. It runs after the seal, so that the client does not wait for
// it. The sweep deletes the objects that it leaves.
func (w *Worker) clear(ctx context.Context, job export.JobID) {
	if _, err := w.Objects.DeletePrefix(ctx, export.Scaffolding(job)...); err != nil {
		w.Logger.Warn("temporary objects are left to the sweep", "job_id", job, "err", err)
	}
}
