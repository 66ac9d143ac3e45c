package spillset

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/golang-lru/v2/expirable"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	// ChunkSize is the number of ids in a chunk. A chunk of patients is the smallest query to the source and the smallest
	// slice of a type, so it must be small enough that several workers can share a heavy type of a few thousand patients.
	// Ten million patients are only twenty thousand small objects.
	ChunkSize = 512
	// cachedChunks is the number of chunks in a Cache, about 40 kB each.
	cachedChunks = 64
)

// Write stores ids as a list below the prefix, which ends with a slash, and returns the number of chunks and ids. The ids
// must come in ascending order without duplicates: membership tests of an unsorted list would be wrong.
func Write(
	ctx context.Context, store *objects.Store, prefix string, each func(yield func(id string) error) error,
) (chunks int, count int64, err error) {
	var chunk, firsts []string
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		firsts = append(firsts, chunk[0])
		err := writeLines(ctx, store, chunkKey(prefix, chunks), idsOf(chunk))
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
		err = writeLines(ctx, store, indexKey(prefix), idsOf(firsts))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("write list: %w", err)
	}
	return chunks, count, nil
}

// Chunks returns the chunks of a list as a run for Merge.
func Chunks(prefix string, chunks int) Run {
	keys := make(Run, chunks)
	for chunk := range keys {
		keys[chunk] = chunkKey(prefix, chunk)
	}
	return keys
}

// Cache holds the most recently used chunks of all lists opened through it. The units of a job read the same cohort, and a
// request to the store costs as much as exporting a few hundred resources. A stored chunk never changes, so no entry can be
// stale. It is safe for concurrent use.
type Cache struct {
	chunks *expirable.LRU[string, []string] // by object key
}

// NewCache returns an empty cache.
func NewCache() *Cache { return newCache(cachedChunks) }

func newCache(chunks int) *Cache {
	return &Cache{chunks: expirable.NewLRU[string, []string](chunks, nil, 0)} // entries do not expire
}

// List is a stored set. It is not safe for concurrent use.
type List struct {
	store  *objects.Store
	cache  *Cache
	prefix string
	firsts []string // the first id of every chunk
}

// Open opens a list that Write has stored. It reads the index at each call, so that it fails for a deleted list.
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

// Chunks returns the number of chunks.
func (l *List) Chunks() int { return len(l.firsts) }

// Chunk returns the ids of the chunk, ascending. Do not modify them.
func (l *List) Chunk(ctx context.Context, chunk int) ([]string, error) {
	if chunk < 0 || chunk >= len(l.firsts) {
		return nil, fmt.Errorf("list has %d chunks, not a chunk %d", len(l.firsts), chunk)
	}
	key := chunkKey(l.prefix, chunk)
	if ids, cached := l.cache.chunks.Get(key); cached {
		return ids, nil
	}
	ids, err := readLines(ctx, l.store, key)
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of list: %w", chunk, err)
	}
	// The list decides which patients are exported: verify it.
	overlaps := len(ids) > 0 && chunk+1 < len(l.firsts) && ids[len(ids)-1] >= l.firsts[chunk+1]
	if len(ids) == 0 || overlaps || ids[0] != l.firsts[chunk] || !slices.IsSorted(ids) {
		return nil, fmt.Errorf("chunk %d of list is damaged", chunk)
	}
	l.cache.chunks.Add(key, ids)
	return ids, nil
}

// IDs returns the ids of the chunks from <= chunk < to, ascending. Do not modify them.
func (l *List) IDs(ctx context.Context, from, to int) ([]string, error) {
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

// Place returns the chunk that would hold the id, or -1 if the id sorts before all chunks.
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
