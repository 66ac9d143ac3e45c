package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// export writes one type of one slice of the cohort, and collects the references of the written lines.
func (w *Worker) export(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	unit := lease.Unit
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix, job.Cohort.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	g := guard{typ: unit.Type, cohort: cohort, doubtful: w.cfg.UnresolvedSubjects == exportThem}
	refs := w.newRefCollector(job, export.ReferencesPrefix(lease.Job, unit.ID, lease.Fence))
	var result export.Result
	var left export.Tally
	result.Files, err = w.writeUnit(ctx, lease, func(out *files) error {
		step := chunksAtOnce(unit)
		for from := unit.Slice.From; from < unit.Slice.To; from += step {
			patients, err := cohort.IDs(ctx, from, min(from+step, unit.Slice.To))
			if err != nil {
				return err
			}
			g.request(patients)
			query := source.Query{Type: unit.Type, Patients: patients, AsOf: job.Snapshot}
			err = w.Source.ForPatients(ctx, query, func(r source.Resource) error {
				verdict, err := g.check(ctx, r)
				if err != nil {
					return err
				}
				if verdict != elsewhere {
					result.Found++
				}
				if verdict == withheld {
					left.Add(unit.Type, g.why, 1)
					w.metrics.withheld.WithLabelValues(string(g.why)).Inc()
				}
				if verdict != admitted {
					return nil
				}
				if err := refs.collect(ctx, r); err != nil {
					return err
				}
				return out.write(r.Body)
			})
			if err := streamError(ctx, err); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	if result.References, err = refs.runs(ctx); err != nil {
		return jobstore.Commit{}, err
	}
	result.LeftOut, result.Withheld = left.List(), left.Total()
	if err := result.Check(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(unit.Kind, false)}, nil
}

const (
	// queryBytes is the estimated result size of one query. The source keeps old versions for as long as a query runs,
	// and a query costs about as much as exporting a thousand resources.
	queryBytes = 64 << 20
	// queryChunks bounds the patients of one query: 8192.
	queryChunks = 16
)

// chunksAtOnce returns the number of cohort chunks of one query.
func chunksAtOnce(unit export.Unit) int {
	chunks := int64(unit.Slice.To - unit.Slice.From)
	return int(min(max(queryBytes*chunks/max(unit.Bytes, 1), 1), queryChunks))
}

// refCollector collects references to those types of the job that are exported because something references them.
type refCollector struct {
	types   map[string]bool
	builder *spillset.Builder
	key     []byte

	seed   maphash.Seed
	recent [recentLists][]byte // reference lists seen recently, each at its hash
}

// A refCollector remembers up to recentLists reference lists of at most recentBytes each. Resources from one site mostly
// have the same lists.
const (
	recentLists = 1024
	recentBytes = 4 << 10
)

// newRefCollector returns a collector that spills below the prefix.
func (w *Worker) newRefCollector(job export.Job, prefix string) *refCollector {
	c := &refCollector{
		types: map[string]bool{}, builder: spillset.NewBuilder(w.Objects, prefix), seed: maphash.MakeSeed(),
	}
	for _, typ := range job.Request.Types {
		if fhir.IsReferenced(typ) {
			c.types[typ] = true
		}
	}
	return c
}

// collect adds the resource's references as "Type/id". The guard has checked its attestation.
func (c *refCollector) collect(ctx context.Context, r source.Resource) (err error) {
	if len(c.types) == 0 {
		return nil
	}
	if !r.Attested() {
		fhir.References(r.Body, func(ref fhir.Ref) bool {
			if c.types[ref.Type] {
				c.key = append(append(append(c.key[:0], ref.Type...), '/'), ref.ID...)
				err = c.add(ctx, c.key)
			}
			return err == nil
		})
		return err
	}
	if len(r.References) <= recentBytes {
		recent := &c.recent[maphash.Bytes(c.seed, r.References)%recentLists]
		if bytes.Equal(r.References, *recent) {
			return nil
		}
		*recent = append((*recent)[:0], r.References...)
	}
	for ref := range bytes.FieldsSeq(r.References) {
		typ, _, _ := bytes.Cut(ref, []byte{'/'})
		if !c.types[string(typ)] {
			continue
		}
		if err := c.add(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

func (c *refCollector) add(ctx context.Context, ref []byte) error {
	if c.builder.Has(ref) {
		return nil
	}
	return c.builder.Add(ctx, string(ref))
}

func (c *refCollector) runs(ctx context.Context) ([]string, error) {
	runs, err := c.builder.Spill(ctx)
	if err != nil {
		return nil, fmt.Errorf("store references: %w", err)
	}
	return runs, nil
}
