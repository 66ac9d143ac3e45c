package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// companions are the resources of the referenced types in blocks of patients: each block has those that its lines
// reference, those that these reference, and so on. Those seen recently are kept in memory, because most patients of a site
// have the same.
type companions struct {
	*Worker

	job    export.Job
	types  map[string]bool // those that are followed; true: the job exports them
	chains map[string]*chain
	guard  listGuard

	attached *attachedTypes
	recent   map[string]companion // by "Type/id"
	bytes    int64                // of recent
	full     bool                 // recent has no more room

	prefix string
	absent *spillset.Builder // references to what is not held, of an incremental export
}

// companionMemory bounds the companions in memory, in bytes. References in memory cost refBytes more than their text.
const (
	companionMemory = 16 << 20
	refBytes        = 64
)

// maxBlockRefs is the number of references that are followed for one block.
const maxBlockRefs = 1 << 18

// companion is a resource that may be in blocks.
type companion struct {
	typ  string        // "": the source does not hold it
	why  export.Reason // why it is withheld, else ""
	line []byte        // nil: it is withheld, or the chain drops it
	refs []string
}

func (w *Worker) newCompanions(
	lease export.Lease, job export.Job, types []string, attached *attachedTypes,
) *companions {
	c := &companions{
		Worker: w, job: job, types: map[string]bool{}, chains: map[string]*chain{}, attached: attached,
		recent: map[string]companion{}, prefix: export.ReferencesPrefix(lease.Job, lease.Unit.ID, lease.Fence),
	}
	for _, typ := range types {
		if fhir.IsReferenced(typ) {
			c.types[typ] = slices.Contains(job.Request.Types, typ)
		}
	}
	c.absent = spillset.NewBuilder(w.Objects, c.prefix)
	return c
}

// refSet is a set of "Type/id". The zero set is ready to use.
type refSet struct {
	all  map[string]struct{}
	next []string // not yet followed
	full bool     // some were not added
}

// add adds a reference and reports whether it is new.
func (s *refSet) add(ref string) bool {
	if _, has := s.all[ref]; has {
		return false
	}
	if len(s.all) == maxBlockRefs {
		s.full = true
		return false
	}
	if s.all == nil {
		s.all = map[string]struct{}{}
	}
	s.all[ref] = struct{}{}
	s.next = append(s.next, ref)
	return true
}

// referenced adds the references of the resource to companions, and returns the memory that they need, in bytes. The guard
// has checked its attestation.
func (c *companions) referenced(r source.Resource, to *refSet) (size int64) {
	if len(c.types) == 0 {
		return 0
	}
	add := func(ref string) {
		if to.add(ref) {
			size += int64(len(ref)) + refBytes
		}
	}
	if !r.Attested() {
		fhir.References(r.Body, func(ref fhir.Ref) bool {
			if _, followed := c.types[ref.Type]; followed {
				add(ref.Type + "/" + ref.ID)
			}
			return true
		})
		return size
	}
	for ref := range bytes.FieldsSeq(r.References) {
		typ, _, _ := bytes.Cut(ref, []byte{'/'})
		if _, followed := c.types[string(typ)]; followed {
			add(string(ref))
		}
	}
	return size
}

// prefetch loads the companions of blocks in few queries, as far as there is memory for them.
func (c *companions) prefetch(ctx context.Context, blocks []refSet) error {
	if c.full {
		clear(c.recent)
		c.bytes, c.full = 0, false
	}
	if len(blocks) == 1 { // each reads the same
		return nil
	}
	var union refSet
	for _, refs := range blocks {
		for _, ref := range refs.next {
			union.add(ref)
		}
	}
	for range maxRounds {
		frontier := slices.Sorted(slices.Values(union.next))
		union.next = nil
		for some := range slices.Chunk(frontier, byIDBatch) {
			if c.full {
				return nil
			}
			err := c.load(ctx, some, func(m companion) error {
				for _, ref := range m.refs {
					union.add(ref)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// each passes the lines of the companions of a block to emit, and counts them.
func (c *companions) each(ctx context.Context, refs *refSet, n *numbers, emit func(line []byte) error) error {
	for round := 0; len(refs.next) > 0; round++ {
		if round == maxRounds {
			refs.full = true
			break
		}
		frontier := slices.Sorted(slices.Values(refs.next))
		refs.next = nil
		err := c.load(ctx, frontier, func(m companion) error {
			for _, ref := range m.refs {
				refs.add(ref)
			}
			switch {
			case !c.types[m.typ]:
				return nil
			case m.why != "":
				n.withhold(m.typ, m.why)
				return nil
			}
			n.pass(m.typ, 1, m.line != nil)
			if m.line == nil {
				return nil
			}
			return emit(m.line)
		})
		if err != nil {
			return err
		}
	}
	if refs.full {
		n.left.AddAll([]export.LeftOut{{Reason: export.UnresolvedReference}})
	}
	return nil
}

// load passes those of the sorted references to use that the source holds, from memory or from the source.
func (c *companions) load(ctx context.Context, refs []string, use func(companion) error) error {
	var missing sortedRefs
	for _, ref := range refs {
		m, recent := c.recent[ref]
		switch {
		case !recent:
			missing = append(missing, ref)
		case m.typ != "":
			if err := use(m); err != nil {
				return err
			}
		}
	}
	c.guard.list = missing
	held := map[string]bool{}
	err := c.byID(ctx, c.job, missing, func(r source.Resource) error {
		m, err := c.read(ctx, r)
		if err != nil {
			return err
		}
		ref := r.Type + "/" + r.ID
		held[ref] = true
		c.remember(ref, m)
		return use(m)
	})
	if err != nil {
		return fmt.Errorf("read referenced resources: %w", err)
	}
	for _, ref := range missing {
		if held[ref] {
			continue
		}
		c.remember(ref, companion{})
		if c.job.Request.Incremental() {
			if err := c.absent.Add(ctx, ref); err != nil {
				return fmt.Errorf("note a missing reference: %w", err)
			}
		}
	}
	return nil
}

// sortedRefs are sorted "Type/id".
type sortedRefs []string

func (s sortedRefs) Contains(_ context.Context, ref string) (bool, error) {
	_, has := slices.BinarySearch(s, ref)
	return has, nil
}

// read checks a companion as a unit of referenced resources does. The line of the result is a copy.
func (c *companions) read(ctx context.Context, r source.Resource) (m companion, err error) {
	m.typ = r.Type
	verdict, err := c.guard.checkListed(ctx, r.Type, r)
	if err != nil {
		return m, err
	}
	if verdict == withheld {
		m.why = c.guard.why
		return m, nil
	}
	next := c.chains[r.Type]
	if next == nil {
		followed := requestOf(c.job, export.Unit{Kind: export.KindExportReferenced})
		if next, err = c.newChain(followed, r.Type); err != nil {
			return m, err
		}
		c.chains[r.Type] = next
	}
	line, err := next.pass(r.Body)
	if err != nil || line == nil {
		return m, err
	}
	if line, err = c.attached.serve(ctx, r.Type, line); err != nil {
		return m, err
	}
	var refs refSet
	c.referenced(r, &refs)
	m.line, m.refs = bytes.Clone(line), refs.next
	return m, nil
}

// remember keeps the companion while there is memory for it.
func (c *companions) remember(ref string, m companion) {
	size := int64(len(ref)+len(m.line)) + refBytes
	for _, to := range m.refs {
		size += int64(len(to)) + refBytes
	}
	if c.bytes+size > c.companionMemory {
		c.full = true
		return
	}
	c.recent[ref] = m
	c.bytes += size
}

// deleted writes the deletions of what blocks still reference.
func (c *companions) deleted(ctx context.Context, unit export.Unit, gone *deletions) error {
	if !c.job.Request.Incremental() {
		return nil
	}
	prefix := c.prefix + "absent/"
	list, err := c.storeList(ctx, prefix, c.absent)
	if err != nil || list == nil {
		return err
	}
	for _, typ := range slices.Sorted(maps.Keys(c.types)) {
		if !c.types[typ] {
			continue
		}
		unit.Type, unit.Slice = typ, export.Slice{To: list.Chunks()}
		if err := c.deletedReferenced(ctx, c.job, unit, list, gone); err != nil {
			return err
		}
	}
	return nil
}
