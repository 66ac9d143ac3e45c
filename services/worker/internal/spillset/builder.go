// Package spillset keeps sets of ids that may be larger than memory: a cohort, or the references that an export has met.
//
// A Builder collects ids in any order, with repeats, and spills sorted runs to the object store when it holds more
// than its limit. What it has collected is read back merged: ascending, no id twice. A List is such a set stored in
// chunks, which can be read chunk by chunk and asked for membership. Memory is bounded by the limits here, never by
// the set.
package spillset

import (
	"bufio"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	// spillBytes bounds the ids that a Builder holds; a map entry costs about 60 bytes beside the id itself.
	spillBytes = 2 << 20
	// fanIn bounds how many runs are open at once while they are merged, each with a connection and 20 kB: enough to
	// merge what the types of a usual job leave at once.
	fanIn = 32
	// openAtOnce is how many of them are asked for at a time.
	openAtOnce = 8
)

// Builder collects ids. It is for one goroutine.
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

// Add puts the id into the set.
func (b *Builder) Add(ctx context.Context, id string) error {
	if _, there := b.held[id]; there {
		return nil
	}
	b.held[id] = struct{}{}
	b.bytes += len(id) + 60
	if b.bytes < b.limit {
		return nil
	}
	return b.spill(ctx)
}

// Has reports whether the id is among those held in memory: a hint that saves work, never an answer.
func (b *Builder) Has(id []byte) bool {
	_, there := b.held[string(id)]
	return there
}

// Runs writes what is held and returns the object keys of all runs, each sorted, without repeats within itself.
func (b *Builder) Runs(ctx context.Context) ([]string, error) {
	if len(b.held) > 0 {
		if err := b.spill(ctx); err != nil {
			return nil, err
		}
	}
	return b.runs, nil
}

// Each yields the set ascending, no id twice. A set that fits in memory is never written.
func (b *Builder) Each(ctx context.Context, yield func(id string) error) error {
	if len(b.runs) == 0 {
		for _, id := range b.sorted() {
			if err := yield(id); err != nil {
				return err
			}
		}
		return nil
	}
	runs, err := b.Runs(ctx)
	if err != nil {
		return err
	}
	return Merge(ctx, b.store, b.prefix, runs, yield)
}

func (b *Builder) sorted() []string {
	ids := make([]string, 0, len(b.held))
	for id := range b.held {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (b *Builder) spill(ctx context.Context) error {
	key := fmt.Sprintf("%srun-%06d", b.prefix, len(b.runs))
	err := writeLines(ctx, b.store, key, func(yield func(string) error) error {
		for _, id := range b.sorted() {
			if err := yield(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("spill ids: %w", err)
	}
	b.runs = append(b.runs, key)
	clear(b.held)
	b.bytes = 0
	return nil
}

// Merge yields the union of sorted runs ascending, no id twice. More runs than can be open at once are first merged
// into fewer, written below the prefix, which ends with a slash.
func Merge(
	ctx context.Context, store *objects.Store, prefix string, runs []string, yield func(id string) error,
) error {
	for round := 0; len(runs) > fanIn; round++ {
		var fewer []string
		for group := range slices.Chunk(runs, fanIn) {
			key := fmt.Sprintf("%smerge-%d-%06d", prefix, round, len(fewer))
			err := writeLines(ctx, store, key, func(yield func(string) error) error {
				return mergeOpen(ctx, store, group, yield)
			})
			if err != nil {
				return err
			}
			fewer = append(fewer, key)
		}
		runs = fewer
	}
	return mergeOpen(ctx, store, runs, yield)
}

func mergeOpen(ctx context.Context, store *objects.Store, runs []string, yield func(string) error) (err error) {
	opened := make([]*run, len(runs))
	defer func() {
		for _, r := range opened {
			if r != nil {
				err = errors.Join(err, r.body.Close())
			}
		}
	}()
	var opening errgroup.Group // at once: one after the other they are most of what a small job waits for
	opening.SetLimit(openAtOnce)
	for i, key := range runs {
		opening.Go(func() error {
			body, err := store.Open(ctx, key, 0, -1)
			if err != nil {
				return fmt.Errorf("open run of ids: %w", err)
			}
			opened[i] = &run{body: body, lines: lineScanner(body)}
			return nil
		})
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

type run struct {
	body  io.ReadCloser
	lines *bufio.Scanner
	head  string
}

func (r *run) next() (bool, error) {
	if !r.lines.Scan() {
		if err := r.lines.Err(); err != nil {
			return false, fmt.Errorf("read run of ids: %w", err)
		}
		return false, nil
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

func lineScanner(r io.Reader) *bufio.Scanner {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), 64<<10)
	return lines
}

// writeLines writes the yielded ids as one object, a line each.
func writeLines(
	ctx context.Context, store *objects.Store, key string, each func(yield func(string) error) error,
) error {
	object := store.Create(ctx, key, "text/plain")
	buffered := bufio.NewWriterSize(object, 64<<10)
	err := each(func(id string) error {
		if _, err := buffered.WriteString(id); err != nil {
			return err
		}
		return buffered.WriteByte('\n')
	})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write ids: %w", err), object.Abort())
	}
	if _, err := object.Commit(); err != nil {
		return fmt.Errorf("write ids: %w", err)
	}
	return nil
}
