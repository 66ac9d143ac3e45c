package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// export writes one type of one slice of the cohort: source, guard, gzip, upload, some chunks of patients at a time. On
// the way it collects what the lines reference among the types that travel along.
func (w *Worker) export(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix)
	if err != nil {
		return jobstore.Commit{}, err
	}
	g := guard{typ: lease.Unit.Type, cohort: cohort}
	out := w.newFiles(ctx, lease, lease.Unit.Type, false)
	refs := w.newRefCollector(lease, job)
	var result export.Result

	write := func(r source.Resource) error {
		verdict, err := g.check(ctx, r)
		if err != nil {
			return err
		}
		switch verdict {
		case elsewhere:
			return nil
		case withheld:
			result.Withheld++
			w.metrics.withheld.Inc()
			return nil
		case admitted:
		}
		if err := refs.collect(ctx, r); err != nil {
			return err
		}
		return out.write(r.Body)
	}
	atOnce := chunksAtOnce(lease.Unit)
	err = func() error {
		for from := lease.Unit.Slice.From; from < lease.Unit.Slice.To; from += atOnce {
			patients, err := cohort.Run(ctx, from, min(from+atOnce, lease.Unit.Slice.To))
			if err != nil {
				return err
			}
			g.ask(patients)
			query := source.Query{Type: lease.Unit.Type, Patients: patients, AsOf: job.Snapshot}
			if err := complete(ctx, w.Source.ForPatients(ctx, query, write)); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		return jobstore.Commit{}, w.abandon(out, fmt.Errorf("export %s: %w", lease.Unit.Type, err))
	}
	if result.Files, err = out.close(); err != nil {
		return jobstore.Commit{}, err
	}
	if result.References, err = refs.runs(ctx); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(lease.Unit.Kind, false)}, nil
}

const (
	// queryBytes is how much one query should give, estimated. A query keeps the source from tidying up for as long as
	// its data takes to be exported, and costs about as much as exporting a thousand resources.
	queryBytes = 64 << 20
	// queryChunks bounds the patients of one query: 8192.
	queryChunks = 16
)

// chunksAtOnce is how many chunks of the cohort one query of the unit asks for.
func chunksAtOnce(unit export.Unit) int {
	chunks := int64(unit.Slice.To - unit.Slice.From)
	return int(min(max(queryBytes*chunks/max(unit.Bytes, 1), 1), queryChunks))
}

// abandon drops the file being written and counts the guard's refusals.
func (w *Worker) abandon(out *files, err error) error {
	var permanent export.PermanentError
	if errors.As(err, &permanent) {
		w.metrics.refusals.Inc()
	}
	if abortErr := out.abort(); abortErr != nil {
		// The object is garbage under our own fence; the sweep removes it. The first error is the one that counts.
		w.Logger.Warn("unfinished file is left to the sweep", "job_id", out.lease.Job, "unit", out.lease.Unit.ID,
			"err", abortErr)
	}
	return err
}

// refCollector collects the references to types that travel along with what is exported.
type refCollector struct {
	wanted  map[string]bool
	builder *spillset.Builder
	key     []byte

	seed   maphash.Seed
	recent [recentLists][]byte // lists of references that were met not long ago, each at its hash
}

// recentLists is how many lists of references are remembered, some hundred bytes each: what happens at one place names the
// same people and houses again and again.
const recentLists = 1024

func (w *Worker) newRefCollector(lease export.Lease, job export.Job) *refCollector {
	c := &refCollector{wanted: map[string]bool{}, seed: maphash.MakeSeed()}
	for _, typ := range job.Request.Types {
		if fhir.IsReferenced(typ) {
			c.wanted[typ] = true
		}
	}
	c.builder = spillset.NewBuilder(w.Objects, export.ReferencesPrefix(lease.Job, lease.Unit.ID, lease.Fence))
	return c
}

// collect notes the resource's references as "Type/id". A guard has checked it: what is attested needs no reading.
func (c *refCollector) collect(ctx context.Context, r source.Resource) error {
	if len(c.wanted) == 0 {
		return nil
	}
	if r.Attested() {
		recent := &c.recent[maphash.Bytes(c.seed, r.References)%recentLists]
		if bytes.Equal(r.References, *recent) {
			return nil
		}
		*recent = append((*recent)[:0], r.References...)
		for rest := r.References; len(rest) > 0; {
			var ref []byte
			ref, rest, _ = bytes.Cut(rest, []byte{' '})
			typ, _, _ := bytes.Cut(ref, []byte{'/'})
			if !c.wanted[string(typ)] {
				continue
			}
			if err := c.add(ctx, ref); err != nil {
				return err
			}
		}
		return nil
	}
	var err error
	fhir.References(r.Body, func(ref fhir.Ref) bool {
		if c.wanted[ref.Type] {
			c.key = append(append(append(c.key[:0], ref.Type...), '/'), ref.ID...)
			err = c.add(ctx, c.key)
		}
		return err == nil
	})
	return err
}

func (c *refCollector) add(ctx context.Context, ref []byte) error {
	if c.builder.Has(ref) {
		return nil
	}
	return c.builder.Add(ctx, string(ref))
}

func (c *refCollector) runs(ctx context.Context) ([]string, error) {
	runs, err := c.builder.Runs(ctx)
	if err != nil {
		return nil, fmt.Errorf("store references: %w", err)
	}
	return runs, nil
}
