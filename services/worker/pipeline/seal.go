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

// seal writes the manifest: every file of every closed unit, and an error file that says what could not be produced.
// If nothing at all could be produced the job fails instead (spec 3).
func (w *Worker) seal(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	failed, done := 0, 0
	out := w.newFiles(ctx, lease, outcomeType, true)
	err := w.Jobs.Results(ctx, job.ID, func(unit export.Unit, result export.Result) error {
		if len(job.Key) > 0 && slices.ContainsFunc(result.Files, func(f export.File) bool { return !f.Encrypted }) {
			// Nobody can read it, and it has to go: with the failure everything of the job is purged.
			return export.Permanent("a worker that knows no encryption has written a part of it")
		}
		writes := unit.Kind == export.KindExport || unit.Kind == export.KindExportReferenced
		switch {
		case result.Failure != "":
			failed++
			return out.writeOutcome(fhir.Outcome("error", "incomplete", failureText(unit, result)))
		case writes:
			done++
		}
		if result.Withheld > 0 {
			return out.writeOutcome(fhir.Outcome("information", "suppressed", fmt.Sprintf(
				"%s: %d resources that are also about somebody outside of the export were left out.",
				unit.Type, result.Withheld)))
		}
		return nil
	})
	if err != nil {
		return jobstore.Commit{}, errors.Join(err, out.abort())
	}
	errorFiles, err := out.close()
	if err != nil {
		return jobstore.Commit{}, err
	}
	if failed > 0 && done == 0 {
		return jobstore.Commit{}, export.Permanent("every part of it failed")
	}

	manifest := export.ManifestKey(job.ID, lease.Fence)
	if err := w.writeManifest(ctx, job, manifest, errorFiles); err != nil {
		return jobstore.Commit{}, err
	}
	finished := w.Now().UTC().Truncate(time.Millisecond)
	return jobstore.Commit{
		Result: export.Result{Files: errorFiles},
		Seal: &jobstore.Seal{
			Manifest: manifest, Finished: finished, Expires: finished.Add(w.cfg.Retention),
		},
	}, nil
}

func failureText(unit export.Unit, result export.Result) string {
	if unit.Kind == export.KindResolveReferences {
		return "Referenced resources are missing: " + result.Failure + "."
	}
	return fmt.Sprintf("A part of %s (%s) is missing: %s.", unit.Type, unit.ID, result.Failure)
}

func (w *Worker) writeManifest(ctx context.Context, job export.Job, key string, last []export.File) (err error) {
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
		return errors.Join(fmt.Errorf("write manifest: %w", err), object.Abort())
	}
	if _, err := object.Commit(); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// clear removes what the job needed only while it ran: after the seal, so that its owner need not wait for it. What
// cannot be removed now is left to the sweep.
func (w *Worker) clear(ctx context.Context, job export.JobID) {
	for _, prefix := range export.Scaffolding(job) {
		if _, err := w.Objects.DeletePrefix(ctx, prefix); err != nil {
			w.Logger.Warn("scaffolding is left to the sweep", "job_id", job, "err", err)
		}
	}
}
