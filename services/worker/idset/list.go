package idset

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const (
	// ChunkSize is how many ids a chunk holds. A chunk of patients is one query to the source and the finest cut of a
	// type's data, so it must be small enough for a heavy type of a few thousand patients to be shared by several
	// workers; ten million patients are still only twenty thousand small objects.
	ChunkSize = 512
	// cachedChunks is how many chunks a List keeps in memory, about 40 kB each.
	cachedChunks = 32
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

// List is a stored set. It is for one goroutine.
type List struct {
	store  *objects.Store
	prefix string
	firsts []string // the first id of every chunk
	cache  []cached // most recently used last
}

type cached struct {
	chunk int
	ids   []string
}

// Open reads the index of a list that Write has stored.
func Open(ctx context.Context, store *objects.Store, prefix string) (*List, error) {
	l := &List{store: store, prefix: prefix}
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
	for i, c := range l.cache {
		if c.chunk == chunk {
			l.cache = append(slices.Delete(l.cache, i, i+1), c)
			return c.ids, nil
		}
	}
	if chunk < 0 || chunk >= len(l.firsts) {
		return nil, fmt.Errorf("list has %d chunks, not a chunk %d", len(l.firsts), chunk)
	}
	ids, err := readLines(ctx, l.store, chunkKey(l.prefix, chunk))
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of list: %w", chunk, err)
	}
	// What says who may be exported is not taken on trust.
	overlaps := len(ids) > 0 && chunk+1 < len(l.firsts) && ids[len(ids)-1] >= l.firsts[chunk+1]
	if len(ids) == 0 || overlaps || ids[0] != l.firsts[chunk] || !slices.IsSorted(ids) {
		return nil, fmt.Errorf("chunk %d of list is damaged", chunk)
	}
	if len(l.cache) == cachedChunks {
		l.cache = slices.Delete(l.cache, 0, 1)
	}
	l.cache = append(l.cache, cached{chunk: chunk, ids: ids})
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
