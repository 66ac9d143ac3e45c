package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// A referenced resource that changed or was deleted in the window of an incremental export concerns the client if any data
// of the cohort references it, also data that has not changed. If the source knows who mentions it, the plan stores the
// resources that lead to those that changed, and a unit of ScopeLeading looks for data that references these: of few
// patients. Else units of ScopeFollowed read all data.

// mostLeading is the most resources that a unit of ScopeLeading looks for.
const mostLeading = 10_000

// chooseFollowed selects what is read for its references alone.
func (w *Worker) chooseFollowed(ctx context.Context, job export.Job, snapshot time.Time, chosen *selection) error {
	most := mostLeading
	request := job.Request
	if request.OrganizedBy != "" || request.Associated != "" || len(request.Through) > 0 ||
		// Lines that pass may be few: many units find them sooner.
		len(request.Filters) > 0 || !request.Until.IsZero() && request.Until.Before(snapshot) {
		most = 0
	}
	types := allowed(request.Types, chosen.grant)
	leading := map[string]bool{}
	add := func(ref string) error {
		if typ, _, _ := strings.Cut(ref, "/"); !slices.Contains(types, typ) {
			return nil
		}
		if leading[ref] = true; len(leading) > most {
			return errFound
		}
		return nil
	}
	err := w.changedReferenced(ctx, job, types, snapshot, add)
	if err == nil {
		err = w.leadTo(ctx, snapshot, leading, add)
	}
	switch {
	case errors.Is(err, errFound) || errors.Is(err, source.ErrMentionsUnknown):
		chosen.followAll = true
		return nil
	case err != nil || len(leading) == 0:
		return err
	}
	prefix := chosen.cohort.Prefix + "leading/"
	chosen.leading, err = spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error {
		for _, ref := range slices.Sorted(maps.Keys(leading)) {
			if err := yield(ref); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store what leads to changed resources: %w", err)
	}
	return nil
}

// changedReferenced yields, as "Type/id", the resources of the referenced types among the types that changed or were
// deleted in the window of the job, and the targets of changed Provenance about such resources alone.
func (w *Worker) changedReferenced(
	ctx context.Context, job export.Job, types []string, snapshot time.Time, yield func(ref string) error,
) error {
	var scanner fhir.Scanner
	for _, typ := range types {
		query := source.EverythingQuery{Type: typ, AsOf: snapshot, Window: window(job.Request)}
		changed := func(r source.Resource) error { return yield(typ + "/" + r.ID) }
		switch {
		case fhir.IsReferenced(typ):
		case typ == "Provenance":
			query.To = source.NoPatient
			changed = func(r source.Resource) error {
				facts, err := scanner.Scan(r.Body)
				if err != nil {
					return nil //nolint:nilerr // the guard withholds or refuses it
				}
				for _, target := range facts.Subjects {
					if !fhir.IsReferenced(target.Type) {
						continue
					}
					if err := yield(target.Type + "/" + target.ID); err != nil {
						return err
					}
				}
				return nil
			}
		default:
			continue
		}
		err := w.Source.Everything(ctx, query, changed)
		if err == nil && typ != "Provenance" { // nobody is told that one without a patient was deleted
			err = w.Source.Deleted(ctx, source.DeletedQuery{Type: typ, AsOf: snapshot, Window: query.Window},
				func(d source.Deletion) error { return yield(typ + "/" + d.ID) })
		}
		if err := streamError(ctx, err); err != nil {
			return fmt.Errorf("look for changes of %s: %w", typ, err)
		}
	}
	return nil
}

// leadTo passes to add what mentions any of the resources, over any number of references. It adds to the set.
func (w *Worker) leadTo(
	ctx context.Context, snapshot time.Time, leading map[string]bool, add func(ref string) error,
) error {
	for refs := slices.Sorted(maps.Keys(leading)); len(refs) > 0; {
		var further []string
		err := w.Source.Mentions(ctx, source.MentionsQuery{Refs: refs, AsOf: snapshot}, func(by, _ string) error {
			known := leading[by]
			err := add(by)
			if !known && leading[by] {
				further = append(further, by)
			}
			return err
		})
		if err := streamError(ctx, err); err != nil {
			return fmt.Errorf("find what leads to changed resources: %w", err)
		}
		slices.Sort(further)
		refs = further
	}
	return nil
}

// leadingUnit returns the unit that looks for what leads to changed resources, to be divided. Its Types are those with data
// that could. It has a type because a worker of the previous release would take it for organized output else: so it fails
// there, for its scope, and is tried again.
func leadingUnit(types []string, chosen selection, sizes source.Sizes) export.Unit {
	unit := export.Unit{
		ID: "leading", Kind: export.KindExport, Scope: export.ScopeLeading, Slice: export.Slice{To: chosen.cohort.Chunks},
		Input: chosen.leading.Prefix, Digest: chosen.leading.Digest,
	}
	var read []string
	for _, typ := range types {
		if size, held := sizes.Types[typ]; held && fhir.InCompartment(typ) {
			read = append(read, typ)
			unit.Bytes += share(size, sizes, chosen.cohort.Patients) / changedShare // mostly it stops early
		} else if fhir.IsReferenced(typ) {
			unit.Type = typ
		}
	}
	// What is found in few bytes need not be looked for in many.
	slices.SortFunc(read, func(a, b string) int { return cmp.Compare(sizes.Types[a].Bytes, sizes.Types[b].Bytes) })
	unit.Types = strings.Join(read, ",")
	return unit
}

// leader looks for lines of the cohort that reference resources of a list, each until it has found a line.
type leader struct {
	*Worker

	job     export.Job
	cohort  *spillset.List
	types   []string
	found   *refCollector
	readers map[string]*leadingReader // by type
	tries   map[string]int            // by resource: the patients of one batch who may be read for it
}

// leadingReader checks the lines of one type.
type leadingReader struct {
	guard

	selection *chain
}

// exportLeading collects the references in the data of the cohort to the resources of the list that the plan has stored,
// each once. Lines count as in units of ScopeFollowed: admitted, and not dropped by the chain.
func (w *Worker) exportLeading(ctx context.Context, lease export.Lease, job export.Job) (jobstore.Commit, error) {
	unit := lease.Unit
	cohort, err := w.lists.Open(ctx, w.Objects, job.Cohort.Prefix, job.Cohort.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	list, err := w.lists.Open(ctx, w.Objects, unit.Input, unit.Digest)
	if err != nil {
		return jobstore.Commit{}, err
	}
	refs, err := list.IDs(ctx, 0, list.Chunks())
	if err != nil {
		return jobstore.Commit{}, err
	}
	l := &leader{
		Worker: w, job: job, cohort: cohort, types: strings.Split(unit.Types, ","),
		found:   w.newRefCollector(job, export.ReferencesPrefix(lease.Job, unit.ID, lease.Fence)),
		readers: map[string]*leadingReader{}, tries: map[string]int{},
	}
	l.found.sought = map[string]bool{}
	for _, ref := range refs {
		l.found.sought[ref] = true
	}
	for from := unit.Slice.From; from < unit.Slice.To && len(l.found.sought) > 0; {
		to := min(from+l.chunks(), unit.Slice.To)
		patients, err := cohort.IDs(ctx, from, to)
		if err == nil {
			err = l.look(ctx, patients)
		}
		if err != nil {
			return jobstore.Commit{}, err
		}
		from = to
	}
	var result export.Result
	if result.References, err = l.found.runs(ctx); err != nil {
		return jobstore.Commit{}, err
	}
	return jobstore.Commit{Result: result, Next: job.Request.Next(unit.Kind, false)}, nil
}

// leadingPairs bounds the pairs of a patient and a resource that are in memory, 8 bytes each, except that a chunk of
// patients is never divided.
const leadingPairs = 1 << 20

// chunks returns the number of chunks of the cohort to look at next.
func (l *leader) chunks() int {
	return min(max(leadingPairs/(spillset.ChunkSize*len(l.found.sought)), 1), queryChunks)
}

// leadingPatients is the most patients that are read at once.
const leadingPatients = 64

// look reads the data of those of the patients who mention what is sought, until it is found. For a resource that many
// mention it reads first one patient, then, as long as no line is found, twice as many.
func (l *leader) look(ctx context.Context, patients []string) error {
	refs := slices.Sorted(maps.Keys(l.found.sought))
	type pair struct{ patient, ref int32 }
	var pairs []pair
	query := source.MentionsQuery{Refs: refs, Patients: patients, AsOf: l.job.Snapshot}
	err := l.Source.Mentions(ctx, query, func(by, ref string) error {
		patient, asked := slices.BinarySearch(patients, by)
		at, sought := slices.BinarySearch(refs, ref)
		if asked && sought {
			pairs = append(pairs, pair{int32(patient), int32(at)}) //nolint:gosec // both are small
		}
		return nil
	})
	if errors.Is(err, source.ErrMentionsUnknown) { // since the plan: the pairs were removed, or the rules have changed
		return l.readAll(ctx, patients, refs)
	}
	if err := streamError(ctx, err); err != nil {
		return fmt.Errorf("find who mentions changed resources: %w", err)
	}
	slices.SortFunc(pairs, func(a, b pair) int { return cmp.Or(cmp.Compare(a.patient, b.patient), cmp.Compare(a.ref, b.ref)) })
	for len(pairs) > 0 {
		var batch []mentioner
		read := map[string]int{} // by resource: the patients of the batch who mention it
		rest := pairs[:0]
		for len(pairs) > 0 {
			n := 1
			for n < len(pairs) && pairs[n].patient == pairs[0].patient {
				n++
			}
			m, now := mentioner{id: patients[pairs[0].patient]}, false
			for _, p := range pairs[:n] {
				if ref := refs[p.ref]; l.found.sought[ref] {
					m.refs = append(m.refs, ref)
					now = now || read[ref] < max(l.tries[ref], 1)
				}
			}
			switch {
			case len(m.refs) == 0:
			case now && len(batch) < leadingPatients:
				batch = append(batch, m)
				for _, ref := range m.refs {
					read[ref]++
				}
			default:
				rest = append(rest, pairs[:n]...)
			}
			pairs = pairs[n:]
		}
		if err := l.read(ctx, batch); err != nil {
			return err
		}
		for ref := range read {
			l.tries[ref] = min(2*max(l.tries[ref], 1), leadingPatients)
		}
		pairs = rest
	}
	return nil
}

// readAll reads the data of the patients, whomever it mentions, until all is found.
func (l *leader) readAll(ctx context.Context, patients, refs []string) error {
	for some := range slices.Chunk(patients, leadingPatients) {
		batch := make([]mentioner, len(some))
		for i, id := range some {
			batch[i] = mentioner{id: id, refs: refs}
		}
		if err := l.read(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// mentioner is a patient who mentions resources that are sought.
type mentioner struct {
	id   string
	refs []string
}

// read reads the data of the patients, type by type, each patient until what the patient mentions is found.
func (l *leader) read(ctx context.Context, batch []mentioner) error {
	for _, typ := range l.types {
		var patients []string
		for _, m := range batch {
			if slices.ContainsFunc(m.refs, func(ref string) bool { return l.found.sought[ref] }) {
				patients = append(patients, m.id)
			}
		}
		if len(patients) == 0 {
			return nil
		}
		reader, err := l.reader(ctx, typ)
		if err != nil {
			return err
		}
		reader.request(patients)
		query := source.Query{Type: typ, Patients: patients, AsOf: l.job.Snapshot}
		err = l.Source.ForPatients(ctx, query, func(r source.Resource) error {
			verdict, err := reader.check(ctx, r)
			if err != nil || verdict != admitted {
				return err
			}
			line, err := reader.selection.pass(r.Body)
			if err != nil || line == nil {
				return err
			}
			return l.found.collect(ctx, r)
		})
		if err := streamError(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

func (l *leader) reader(ctx context.Context, typ string) (*leadingReader, error) {
	if reader := l.readers[typ]; reader != nil {
		return reader, nil
	}
	unit := export.Unit{Kind: export.KindExport, Type: typ, Scope: export.ScopeLeading}
	g, _, err := l.newGuard(ctx, l.job, unit, l.cohort)
	if err != nil {
		return nil, err
	}
	selection, err := l.newSelection(requestOf(l.job, unit), typ)
	if err != nil {
		return nil, err
	}
	l.readers[typ] = &leadingReader{g, selection}
	return l.readers[typ], nil
}
