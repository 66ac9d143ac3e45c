package spillset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	// ChunkSize is how many ids a chunk holds. A chunk of patients is one query to the source and the finest cut of a
	// type's data, so it must be small enough for a heavy type of a few thousand patients to be shared by several
	// workers; ten million patients are still only twenty thousand small objects.
	ChunkSize = 512
	// cachedChunks is how many chunks a Cache keeps in memory, about 40 kB each.
	cachedChunks = 64
)

// Write stores the ids that each yields, which must be ascending without repeats, as a list below the prefix (which
// ends with a slash), and returns the number of chunks and ids. An id out of order is an error: a list that is not
// sorted would answer membership wrongly.
func Write(
	ctx context.Context, store *objects.Store, prefix string, each func(yield func(id string) error) error,
) (chunks int, count int64, err error) {
	var chunk, firsts []string
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		firsts = append(firsts, chunk[0])
		err := writeLines(ctx, store, chunkKey(prefix, chunks), eachOf(chunk))
		chunks++
		chunk = chunk[:0]
		return err
	}
	var last string
	err = each(func(id string) error {
		if count > 0 && id <= last {
			return errors.New("ids are not in ascending order")
		}
		last = id
		count++
		chunk = append(chunk, id)
		if len(chunk) < ChunkSize {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = writeLines(ctx, store, indexKey(prefix), eachOf(firsts))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("write list: %w", err)
	}
	return chunks, count, nil
}

// Runs returns the object keys of a list of so many chunks, as sorted runs for Merge.
func Runs(prefix string, chunks int) []string {
	keys := make([]string, chunks)
	for chunk := range keys {
		keys[chunk] = chunkKey(prefix, chunk)
	}
	return keys
}

// Cache keeps what was last read of lists, for all the Lists that are opened through it: the units of a job read the same
// cohort, and a read of the store costs as much as exporting some hundred resources. What is stored under a key never
// changes, so nothing here can be out of date. It may be used from any goroutine.
type Cache struct {
	mu   sync.Mutex
	held []cached // most recently used last
}

type cached struct {
	key string
	ids []string
}

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{} }

// get returns what is held under the key and takes it for used.
func (c *Cache) get(key string) ([]string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, entry := range c.held {
		if entry.key == key {
			c.held = append(slices.Delete(c.held, i, i+1), entry)
			return entry.ids, true
		}
	}
	return nil, false
}

func (c *Cache) put(key string, ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held) == cachedChunks {
		c.held = slices.Delete(c.held, 0, 1)
	}
	c.held = append(c.held, cached{key: key, ids: ids})
}

// List is a stored set. It is for one goroutine.
type List struct {
	store  *objects.Store
	cache  *Cache
	prefix string
	firsts []string // the first id of every chunk
}

// Open reads the index of a list that Write has stored. The list has a cache of its own.
func Open(ctx context.Context, store *objects.Store, prefix string) (*List, error) {
	return NewCache().Open(ctx, store, prefix)
}

// Open is Open with this cache. An index is read each time: it says whether the list is still there.
func (c *Cache) Open(ctx context.Context, store *objects.Store, prefix string) (*List, error) {
	l := &List{store: store, cache: c, prefix: prefix}
	var err error
	if l.firsts, err = readLines(ctx, store, indexKey(prefix)); err != nil {
		return nil, fmt.Errorf("open list: %w", err)
	}
	if !slices.IsSorted(l.firsts) {
		return nil, errors.New("open list: the index is damaged")
	}
	return l, nil
}

// Chunk returns the ids of the chunk, ascending. Do not modify them.
func (l *List) Chunk(ctx context.Context, chunk int) ([]string, error) {
	if chunk < 0 || chunk >= len(l.firsts) {
		return nil, fmt.Errorf("list has %d chunks, not a chunk %d", len(l.firsts), chunk)
	}
	key := chunkKey(l.prefix, chunk)
	if ids, held := l.cache.get(key); held {
		return ids, nil
	}
	ids, err := readLines(ctx, l.store, key)
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of list: %w", chunk, err)
	}
	// What says who may be exported is not taken on trust.
	overlaps := len(ids) > 0 && chunk+1 < len(l.firsts) && ids[len(ids)-1] >= l.firsts[chunk+1]
	if len(ids) == 0 || overlaps || ids[0] != l.firsts[chunk] || !slices.IsSorted(ids) {
		return nil, fmt.Errorf("chunk %d of list is damaged", chunk)
	}
	l.cache.put(key, ids)
	return ids, nil
}

// Run returns the ids of the chunks from <= chunk < to, ascending. Do not modify them.
func (l *List) Run(ctx context.Context, from, to int) ([]string, error) {
	if to == from+1 {
		return l.Chunk(ctx, from)
	}
	var ids []string
	for chunk := from; chunk < to; chunk++ {
		more, err := l.Chunk(ctx, chunk)
		if err != nil {
			return nil, err
		}
		ids = append(ids, more...)
	}
	return ids, nil
}

// Place returns the chunk that would hold the id, -1 when the id is before all of them.
func (l *List) Place(id string) int {
	at, found := slices.BinarySearch(l.firsts, id)
	if found {
		return at
	}
	return at - 1
}

// Contains reports whether the id is in the set.
func (l *List) Contains(ctx context.Context, id string) (bool, error) {
	chunk := l.Place(id)
	if chunk < 0 {
		return false, nil
	}
	ids, err := l.Chunk(ctx, chunk)
	if err != nil {
		return false, err
	}
	_, found := slices.BinarySearch(ids, id)
	return found, nil
}

func chunkKey(prefix string, chunk int) string { return fmt.Sprintf("%schunk-%06d", prefix, chunk) }

func indexKey(prefix string) string { return prefix + "index" }

func eachOf(ids []string) func(func(string) error) error {
	return func(yield func(string) error) error {
		for _, id := range ids {
			if err := yield(id); err != nil {
				return err
			}
		}
		return nil
	}
}

func readLines(ctx context.Context, store *objects.Store, key string) (ids []string, err error) {
	body, err := store.Open(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	lines := lineScanner(body)
	for lines.Scan() {
		ids = append(ids, lines.Text())
	}
	return ids, lines.Err()
}

// Chunks returns the number of chunks.
func (l *List) Chunks() int { return len(l.firsts) }
