package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

const (
	operationOutcome = "OperationOutcome"
	ndjsonType       = "application/fhir+ndjson"
)

// list is the list of the manifest that a file belongs to.
type list int

const (
	output list = iota
	deleted
	errorList
)

// files writes one type's lines as gzipped NDJSON objects of limited size. It creates no object before the first line:
// there are no empty files (spec 4). It is not safe for concurrent use.
type files struct {
	ctx    context.Context
	worker *Worker
	lease  export.Lease
	typ    string
	list   list

	object  *objects.Writer
	gzip    gzipblocks.Writer
	current export.File
	done    []export.File

	throttle throttle
	span     trace.Span
}

// writeFiles returns the files that write has written, in order. When write fails, it drops the unfinished file and leaves
// the finished ones to the sweep.
func (w *Worker) writeFiles(
	ctx context.Context, lease export.Lease, typ string, list list, write func(*files) error,
) ([]export.File, error) {
	f := &files{ctx: ctx, worker: w, lease: lease, typ: typ, list: list}
	if !lease.Unit.Short() {
		f.throttle = throttle{active: &w.shortUnits, job: lease.Job}
	}
	err := write(f)
	if err == nil && f.object != nil {
		err = f.finish()
	}
	if err == nil {
		return f.done, nil
	}
	if abortErr := f.abort(); abortErr != nil {
		// The object is garbage under this unit's fence. The first error decides the outcome.
		w.Logger.Warn("unfinished file is left to the sweep", "job_id", lease.Job, "unit", lease.Unit.ID, "err", abortErr)
	}
	return nil, err
}

// writeUnit writes the files of an export unit. A permanent error is a refusal of a guard.
func (w *Worker) writeUnit(ctx context.Context, lease export.Lease, write func(*files) error) ([]export.File, error) {
	typ := cmp.Or(lease.Unit.Type, export.HeaderType) // an organized unit has no type
	done, err := w.writeFiles(ctx, lease, typ, output, write)
	if err == nil {
		return done, nil
	}
	if errors.As(err, new(export.PermanentError)) {
		w.metrics.refusals.Inc()
	}
	return nil, fmt.Errorf("export %s: %w", typ, err)
}

// writeErrors writes an error file of the job: one line for each type whose permission was withdrawn, and the lines that
// write adds.
func (w *Worker) writeErrors(
	ctx context.Context, lease export.Lease, withdrawn []string, write func(*files) error,
) ([]export.File, error) {
	return w.writeFiles(ctx, lease, operationOutcome, errorList, func(out *files) error {
		for _, typ := range withdrawn {
			err := out.writeIssue(fhir.Outcome("error", "forbidden", typ+": the permission was withdrawn."))
			if err != nil {
				return err
			}
		}
		return write(out)
	})
}

var errAborted = errors.New("aborted")

var newline = []byte{'\n'}

// write appends one resource as a line. It finishes a file that is full.
func (f *files) write(line []byte) error {
	if err := f.append(line); err != nil {
		return err
	}
	if f.current.Bytes >= f.worker.cfg.FileBytes {
		return f.finish()
	}
	return nil
}

// append appends a line to the current file, whatever its size.
func (f *files) append(line []byte) error {
	if f.object == nil {
		if err := f.begin(); err != nil {
			return err
		}
	}
	if _, err := f.gzip.Write(line); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if _, err := f.gzip.Write(newline); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	f.current.Count++
	f.current.Bytes += int64(len(line)) + 1
	f.throttle.wrote(len(line))
	return nil
}

func (f *files) writeIssue(outcome fhir.OperationOutcome) error {
	line, err := json.Marshal(outcome)
	if err != nil {
		return fmt.Errorf("encode outcome: %w", err)
	}
	return f.write(line)
}

// name returns the name of the n'th file, from 0.
func (f *files) name(n int) string { return export.FileName(f.lease.Unit.ID, f.lease.Fence, f.typ, n) }

func (f *files) begin() error {
	name := f.name(len(f.done))
	f.current = export.File{
		Name: name, Type: f.typ, Error: f.list == errorList, Deleted: f.list == deleted,
		Key: export.FileKey(f.lease.Job, f.typ, name),
	}
	if f.list == deleted {
		f.current.Of = f.lease.Unit.Type
	}
	f.object = f.worker.Objects.Create(f.ctx, f.current.Key, ndjsonType)
	_, f.span = telemetry.StartSpan(f.ctx, "upload", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("sluice.type", f.typ), attribute.Int("sluice.file", len(f.done))))
	if err := f.gzip.Reset(f.object); err != nil {
		return fmt.Errorf("begin file: %w", err)
	}
	return nil
}

// finish closes the current file and waits for the store's confirmation (pitfall 9).
func (f *files) finish() (err error) {
	defer func() { f.endUpload(err) }()
	object := f.object
	f.object = nil
	if err := f.gzip.Close(); err != nil {
		return errors.Join(fmt.Errorf("finish file: %w", err), object.Abort())
	}
	stored, err := object.Commit()
	if err != nil {
		return fmt.Errorf("finish file: %w", err)
	}
	f.current.Stored, f.current.SHA256, f.current.Encrypted = stored.Size, stored.SHA256, stored.Encrypted
	f.current.Blocks, f.current.Encoder = f.gzip.Index(), gzipblocks.Encoder
	f.done = append(f.done, f.current)
	f.worker.metrics.resources.WithLabelValues(f.typ).Add(float64(f.current.Count))
	f.worker.metrics.bytes.WithLabelValues(f.typ).Add(float64(f.current.Bytes))
	f.worker.metrics.stored.WithLabelValues(f.typ).Add(float64(f.current.Stored))
	return nil
}

// abort drops the unfinished file.
func (f *files) abort() error {
	if f.object == nil {
		return nil
	}
	object := f.object
	f.object = nil
	f.endUpload(errAborted)
	return object.Abort()
}

// endUpload ends the span of a file.
func (f *files) endUpload(err error) {
	f.span.SetAttributes(
		attribute.Int64("sluice.resources", f.current.Count), attribute.Int64("sluice.bytes", f.current.Bytes),
		attribute.Int64("sluice.stored_bytes", f.current.Stored),
	)
	telemetry.EndSpan(f.span, err)
}
