// Package spillset stores sets of ids that may exceed memory: a cohort, or the references of an export.
//
// A Builder collects ids in any order, with duplicates, and spills sorted runs to the object store above a memory limit. It
// yields them merged, in ascending order and without duplicates. A List is such a set stored in chunks, which can be read
// chunk by chunk or tested for membership. The limits in this package bound the memory, not the size of the set.
package spillset

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	// spillBytes bounds the memory of a Builder, which counts entryBytes for each id in addition to its length.
	spillBytes = 2 << 20
	entryBytes = 60
	// fanIn is the number of runs that are merged at once, each with a connection and 20 kB. A typical job has fewer
	// runs.
	fanIn = 32
	// openAtOnce is the number of runs that are opened concurrently.
	openAtOnce = 8
)

// idSeq yields ids until yield returns an error, which it returns.
type idSeq func(yield func(id string) error) error

func idsOf(list []string) idSeq {
	return func(yield func(string) error) error {
		for _, id := range list {
			if err := yield(id); err != nil {
				return err
			}
		}
		return nil
	}
}

// Builder collects ids. It is not safe for concurrent use.
type Builder struct {
	store  *objects.Store
	prefix string
	held   map[string]struct{}
	bytes  int
	limit  int
	runs   []string
}

// NewBuilder returns an empty builder that spills below the prefix, which ends with a slash.
func NewBuilder(store *objects.Store, prefix string) *Builder {
	return &Builder{store: store, prefix: prefix, held: map[string]struct{}{}, limit: spillBytes}
}

// Add adds the id to the set.
func (b *Builder) Add(ctx context.Context, id string) error {
	if _, held := b.held[id]; held {
		return nil
	}
	b.held[id] = struct{}{}
	b.bytes += len(id) + entryBytes
	if b.bytes < b.limit {
		return nil
	}
	return b.spill(ctx)
}

// Has reports whether the id is held in memory. False does not mean that the set lacks it.
func (b *Builder) Has(id []byte) bool {
	_, held := b.held[string(id)]
	return held
}

// Spill writes the ids in memory and returns the object keys of all runs, each sorted and without duplicates.
func (b *Builder) Spill(ctx context.Context) ([]string, error) {
	if len(b.held) > 0 {
		if err := b.spill(ctx); err != nil {
			return nil, err
		}
	}
	return b.runs, nil
}

// Each yields the set in ascending order, without duplicates. It writes nothing if the set fits in memory.
func (b *Builder) Each(ctx context.Context, yield func(id string) error) error {
	if len(b.runs) == 0 {
		return b.sorted()(yield)
	}
	runs, err := b.Spill(ctx)
	if err != nil {
		return err
	}
	return Merge(ctx, b.store, b.prefix, Runs(runs), yield)
}

// Store stores the set as a list below the prefix, which ends with a slash.
func (b *Builder) Store(ctx context.Context, prefix string) (Stored, error) {
	return Write(ctx, b.store, prefix, func(yield func(id string) error) error { return b.Each(ctx, yield) })
}

// Run is a sorted sequence of ids: objects that are read one after the other.
type Run []part

// Runs returns one run for each key that Spill has returned.
func Runs(keys []string) []Run {
	runs := make([]Run, len(keys))
	for i, key := range keys {
		runs[i] = Run{runPart(key)}
	}
	return runs
}

// runKey returns the key of a run. It ends with the digest of the run, so that the record of a unit, which holds the key,
// also says what the object has to hold.
func runKey(prefix string, n int, sum []byte) string {
	return fmt.Sprintf("%srun-%06d.%x", prefix, n, sum)
}

func runPart(key string) part {
	_, digest, _ := strings.Cut(path.Base(key), ".")
	return digested(key, digest)
}

func (b *Builder) sorted() idSeq { return idsOf(slices.Sorted(maps.Keys(b.held))) }

func (b *Builder) spill(ctx context.Context) error {
	sorted := b.sorted()
	digest := sha256.New()
	if err := encodeLines(digest, sorted); err != nil {
		return fmt.Errorf("spill ids: %w", err)
	}
	key := runKey(b.prefix, len(b.runs), digest.Sum(nil))
	if _, err := writeLines(ctx, b.store, key, sorted); err != nil {
		return fmt.Errorf("spill ids: %w", err)
	}
	b.runs = append(b.runs, key)
	clear(b.held)
	b.bytes = 0
	return nil
}

// Merge yields the union of sorted runs in ascending order, without duplicates. It merges more than fanIn runs in rounds,
// written below the prefix, which ends with a slash.
func Merge(
	ctx context.Context, store *objects.Store, prefix string, runs []Run, yield func(id string) error,
) error {
	return merge(ctx, store, prefix, runs, fanIn, yield)
}

func merge(
	ctx context.Context, store *objects.Store, prefix string, runs []Run, fanIn int, yield func(id string) error,
) error {
	for round := 0; len(runs) > fanIn; round++ {
		var fewer []Run
		for group := range slices.Chunk(runs, fanIn) {
			key := fmt.Sprintf("%smerge-%d-%06d", prefix, round, len(fewer))
			sum, err := writeLines(ctx, store, key, func(yield func(string) error) error {
				return mergeOpen(ctx, store, group, yield)
			})
			if err != nil {
				return err
			}
			fewer = append(fewer, Run{{key: key, sum: sum}})
		}
		runs = fewer
	}
	return mergeOpen(ctx, store, runs, yield)
}

func mergeOpen(ctx context.Context, store *objects.Store, runs []Run, yield func(string) error) (err error) {
	opened := make([]*run, len(runs))
	defer func() {
		for _, r := range opened {
			if r != nil && r.lines != nil {
				err = errors.Join(err, r.lines.close())
			}
		}
	}()
	var opening errgroup.Group // concurrent: sequential opens take most of the time of a small job
	opening.SetLimit(openAtOnce)
	for i, parts := range runs {
		opened[i] = &run{ctx: ctx, store: store, left: parts}
		opening.Go(opened[i].open)
	}
	if err := opening.Wait(); err != nil {
		return err
	}
	heads := make(runHeap, 0, len(runs))
	for _, r := range opened {
		more, err := r.next()
		if err != nil {
			return err
		}
		if more {
			heads = append(heads, r)
		}
	}
	heap.Init(&heads)
	var last string
	for first := true; len(heads) > 0; first = false {
		r := heads[0]
		if id := r.head; first || id != last {
			if err := yield(id); err != nil {
				return err
			}
			last = id
		}
		more, err := r.next()
		if err != nil {
			return err
		}
		if more {
			heap.Fix(&heads, 0)
		} else {
			heap.Pop(&heads)
		}
	}
	return nil
}

// run reads a Run.
type run struct {
	ctx   context.Context
	store *objects.Store
	left  Run    // not yet opened
	lines *lines // of the open part
	head  string
}

// open opens the next object of the run.
func (r *run) open() error {
	if r.lines != nil {
		err := r.lines.close()
		if r.lines = nil; err != nil {
			return fmt.Errorf("read run of ids: %w", err)
		}
	}
	opened, err := r.left[0].open(r.ctx, r.store)
	if err != nil {
		return fmt.Errorf("open run of ids: %w", err)
	}
	r.lines, r.left = opened, r.left[1:]
	return nil
}

func (r *run) next() (bool, error) {
	for !r.lines.Scan() {
		if err := r.lines.verify(); err != nil {
			return false, fmt.Errorf("read run of ids: %w", err)
		}
		if len(r.left) == 0 {
			return false, nil
		}
		if err := r.open(); err != nil {
			return false, err
		}
	}
	r.head = r.lines.Text()
	return true, nil
}

type runHeap []*run

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return h[i].head < h[j].head }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is never called: the heap only shrinks.
func (h *runHeap) Push(x any) { *h = append(*h, x.(*run)) } //nolint:forcetypeassert // heap of one type

// Pop is called by container/heap.
func (h *runHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
