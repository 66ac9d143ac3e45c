package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// export writes one type of one part of the data, by the scope of the unit, and collects the references of the written
// lines.
func (w *Worker) export(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	unit := lease.Unit
	if unit.Organized() {
		return w.exportOrganized(ctx, lease, job)
	}
	if unit.Scope == export.ScopeLeading {
		return w.exportLeading(ctx, lease, job)
	}
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix, job.Cohort.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	next, err := w.newChain(requestOf(job, unit), unit.Type)
	if err != nil {
		return jobstore.Commit{}, err
	}
	attached := w.newAttachments(lease, job, cohort)
	defer attached.abort()
	sink := &sink{worker: w, unit: unit, chain: next, attached: attached}
	sink.refs = w.newRefCollector(job, export.ReferencesPrefix(lease.Job, unit.ID, lease.Fence))
	if err := w.associate(ctx, lease, job, cohort, sink); err != nil {
		return jobstore.Commit{}, err
	}
	var result export.Result
	result.Files, err = w.writeWithDeleted(ctx, lease, func(out *files, gone *deletions) error {
		sink.out, sink.gone = out, gone
		switch unit.Scope {
		case export.ScopeCohort, export.ScopeFollowed, export.ScopeJoined, export.ScopeGone:
			return w.exportCohort(ctx, job, unit, cohort, sink)
		case export.ScopeAll:
			for _, part := range sink.kept.divided(unit) {
				if err := w.exportAll(ctx, job, part, cohort, sink); err != nil {
					return err
				}
			}
			return nil
		case export.ScopeNobody:
			return w.exportNobody(ctx, job, unit, cohort, sink)
		default:
			return fmt.Errorf("unit of unknown scope %q", unit.Scope)
		}
	})
	if err != nil {
		return jobstore.Commit{}, err
	}
	if result.References, err = sink.refs.runs(ctx); err != nil {
		return jobstore.Commit{}, err
	}
	result.Found, result.Filtered = sink.found, next.dropped
	result.LeftOut, result.Withheld = sink.left.List(), sink.left.Total()
	if err := attached.addTo(&result); err != nil {
		return jobstore.Commit{}, err
	}
	if unit.Scope == export.ScopeFollowed {
		result = export.Result{References: result.References} // other units export these resources, or none does
	}
	if err := sink.targets.store(ctx, &result); err != nil {
		return jobstore.Commit{}, err
	}
	if err := result.Check(); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(unit.Kind, false)}, nil
}

// exportCohort exports the data of the patients in the unit's slice of the cohort.
func (w *Worker) exportCohort(
	ctx context.Context, job export.Job, unit export.Unit, cohort *spillset.List, sink *sink,
) error {
	g, sliced, err := w.newGuard(ctx, job, unit, cohort)
	if err != nil {
		return err
	}
	narrowing, err := w.narrowing(job, unit, sink)
	if err != nil {
		return err
	}
	step := chunksAtOnce(unit)
	for from := unit.Slice.From; from < unit.Slice.To; from += step {
		patients, err := sliced.IDs(ctx, from, min(from+step, unit.Slice.To))
		if err != nil {
			return err
		}
		if g.joined != nil && unit.Scope == export.ScopeCohort {
			if patients, err = without(ctx, patients, g.joined); err != nil {
				return err
			}
		}
		g.request(patients)
		if err := w.exportDeleted(ctx, job, unit, &g, sink); err != nil {
			return err
		}
		if unit.Scope == export.ScopeGone {
			continue
		}
		query := source.Query{
			Type: unit.Type, Patients: patients, AsOf: job.Snapshot, Window: windowOf(job, unit), Narrowing: narrowing,
		}
		err = w.Source.ForPatients(ctx, query, func(r source.Resource) error {
			verdict, err := g.check(ctx, r)
			if err != nil {
				return err
			}
			return sink.take(ctx, r, verdict, g.why)
		})
		if err := streamError(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// newGuard returns the guard of the unit, and the list that the unit has a slice of.
func (w *Worker) newGuard(
	ctx context.Context, job export.Job, unit export.Unit, cohort *spillset.List,
) (g guard, sliced *spillset.List, err error) {
	g = guard{typ: unit.Type, cohort: cohort, doubtful: w.cfg.UnresolvedSubjects == exportThem}
	sliced = cohort
	for _, sublist := range []struct {
		stored export.Sublist
		list   **spillset.List
		scope  export.Scope
	}{{job.Cohort.Joined, &g.joined, export.ScopeJoined}, {job.Cohort.Gone, &g.gone, export.ScopeGone}} {
		if sublist.stored.Chunks == 0 {
			continue
		}
		list, err := w.lists.Open(ctx, w.Objects, sublist.stored.Prefix, sublist.stored.Digest)
		if err != nil {
			return guard{}, nil, err
		}
		*sublist.list = list
		if unit.Scope == sublist.scope {
			sliced = list
		}
	}
	return g, sliced, nil
}

// sink takes the resources that a guard has checked: through the chain into the files, and their references.
type sink struct {
	worker *Worker
	unit   export.Unit
	chain  *chain
	refs   *refCollector
	out    *files
	gone   *deletions
	found  int64        // resources that are the unit's own
	left   export.Tally // withheld

	targets  *targetCollector // for Request.Associated; nil: nothing is collected
	kept     *keptList        // of KindExportAssociated, else nil
	attached *attachments
}

// take writes an admitted resource, and counts one that is withheld for the reason.
func (s *sink) take(ctx context.Context, r source.Resource, v verdict, why export.Reason) error {
	if v == withheld && s.kept != nil {
		return nil // counted in the first reading
	}
	if v != elsewhere {
		s.found++
	}
	if v == withheld {
		s.left.Add(s.unit.Type, why, 1)
		s.worker.metrics.withheld.WithLabelValues(string(why)).Inc()
	}
	if v != admitted {
		return nil
	}
	if kept, err := s.kept.has(ctx, r); err != nil || !kept {
		s.chain.dropped++
		return err
	}
	line, err := s.chain.pass(r.Body)
	if err != nil || line == nil {
		return err
	}
	if s.targets.areCandidates() {
		return s.targets.candidate(ctx, r)
	}
	if err := s.refs.collect(ctx, r); err != nil || s.unit.Scope == export.ScopeFollowed {
		return err
	}
	if err := s.targets.written(ctx, r); err != nil {
		return err
	}
	if line, err = s.attached.serve(ctx, line); err != nil {
		return err
	}
	return s.out.write(line)
}

// narrowing lets the source leave out what the unit's filter drops. It counts like a line that the chain has dropped: a
// guard would have admitted it (source.Narrowing).
func (w *Worker) narrowing(job export.Job, unit export.Unit, sink *sink) (source.Narrowing, error) {
	filter, err := w.filterOf(requestOf(job, unit), unit.Type)
	if filter == nil {
		return source.Narrowing{}, err
	}
	return source.Narrowing{Bound: filter.Bound(), LeftOut: func(n int64) {
		sink.found += n
		sink.chain.dropped += n
	}}, nil
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
	sought  map[string]bool // only these are collected, each once; nil: all

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
	for _, typ := range slices.Concat(job.Request.Types, job.Request.Through) {
		// The system level exports these types whole.
		if fhir.IsReferenced(typ) && job.Request.AtLevel() != export.SystemLevel {
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
	if c.builder.Has(ref) || c.sought != nil && !c.sought[string(ref)] {
		return nil
	}
	delete(c.sought, string(ref))
	return c.builder.Add(ctx, string(ref))
}

func (c *refCollector) runs(ctx context.Context) ([]string, error) {
	runs, err := c.builder.Spill(ctx)
	if err != nil {
		return nil, fmt.Errorf("store references: %w", err)
	}
	return runs, nil
}
