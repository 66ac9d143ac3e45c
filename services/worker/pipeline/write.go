package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	outcomeType = "OperationOutcome"
	ndjsonType  = "application/fhir+ndjson"
)

// files writes one type's lines as gzipped NDJSON objects, the next one begun when one is full. No object is made
// before the first line: there are no empty files (spec 4). It is for one goroutine.
type files struct {
	ctx    context.Context
	worker *Worker
	lease  export.Lease
	typ    string
	error  bool

	object  *objects.Writer
	gzip    *gzip.Writer
	current export.File
	done    []export.File

	throttle throttle
	span     trace.Span
}

// newFiles returns the writer of one type's files for the lease. The context holds for all that is written.
func (w *Worker) newFiles(ctx context.Context, lease export.Lease, typ string, isError bool) *files {
	f := &files{ctx: ctx, worker: w, lease: lease, typ: typ, error: isError}
	if !lease.Unit.Short() {
		f.throttle = throttle{active: &w.shortUnits, job: lease.Job}
	}
	return f
}

var errAborted = errors.New("aborted")

var newline = []byte{'\n'}

// write appends one resource as a line.
func (f *files) write(line []byte) error {
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
	if f.current.Bytes >= f.worker.cfg.FileBytes {
		return f.finish()
	}
	return nil
}

func (f *files) writeOutcome(outcome fhir.OperationOutcome) error {
	line, err := json.Marshal(outcome)
	if err != nil {
		return fmt.Errorf("encode outcome: %w", err)
	}
	return f.write(line)
}

// writeWithdrawn says that a type was asked for and may no longer be exported.
func (f *files) writeWithdrawn(typ string) error {
	return f.writeOutcome(fhir.Outcome("error", "forbidden", typ+": the permission was withdrawn."))
}

func (f *files) begin() error {
	name := export.FileName(f.lease.Unit.ID, f.lease.Fence, f.typ, len(f.done))
	f.current = export.File{
		Name: name, Type: f.typ, Error: f.error, Key: export.FileKey(f.lease.Job, f.typ, name),
	}
	f.object = f.worker.Objects.Create(f.ctx, f.current.Key, ndjsonType)
	f.traceUpload()
	if f.gzip != nil {
		f.gzip.Reset(f.object)
		return nil
	}
	var err error
	// Level 1 is as fast as the store takes it in; higher levels make the export slower and little smaller.
	if f.gzip, err = gzip.NewWriterLevel(f.object, gzip.BestSpeed); err != nil {
		return fmt.Errorf("begin file: %w", err)
	}
	return nil
}

// finish closes the current file and has the store confirm it (pitfall 9).
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
	f.done = append(f.done, f.current)
	f.worker.metrics.resources.WithLabelValues(f.typ).Add(float64(f.current.Count))
	f.worker.metrics.bytes.WithLabelValues(f.typ).Add(float64(f.current.Bytes))
	f.worker.metrics.stored.WithLabelValues(f.typ).Add(float64(f.current.Stored))
	return nil
}

// close finishes the last file and returns all of them, in order.
func (f *files) close() ([]export.File, error) {
	if f.object != nil {
		if err := f.finish(); err != nil {
			return nil, err
		}
	}
	return f.done, nil
}

// abort drops the file being written. Files finished before it stay as garbage for the sweep.
func (f *files) abort() error {
	if f.object == nil {
		return nil
	}
	object := f.object
	f.object = nil
	f.endUpload(errAborted)
	return object.Abort()
}
