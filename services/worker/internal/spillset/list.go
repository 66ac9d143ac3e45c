package spillset

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

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

// Stored is a list that Write has stored.
type Stored struct {
	Prefix string // of its objects; ends with a slash
	Chunks int
	Count  int64  // ids in all chunks
	Digest string // SHA-256 that Open verifies the list with, lower-case hex

	sums [][]byte // SHA-256 of the chunks
}

// Write stores ids as a list below the prefix, which ends with a slash. The ids must come in ascending order without
// duplicates: membership tests of an unsorted list would be wrong.
func Write(
	ctx context.Context, store *objects.Store, prefix string, each func(yield func(id string) error) error,
) (Stored, error) {
	list := Stored{Prefix: prefix}
	var chunk, contents []string
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		sum, err := writeLines(ctx, store, chunkKey(prefix, list.Chunks), idsOf(chunk))
		contents = append(contents, fmt.Sprintf("%s %x", chunk[0], sum))
		list.sums = append(list.sums, sum)
		list.Chunks++
		chunk = chunk[:0]
		return err
	}
	var last string
	err := each(func(id string) error {
		if list.Count > 0 && id <= last {
			return errors.New("ids are not in ascending order")
		}
		last = id
		list.Count++
		chunk = append(chunk, id)
		if len(chunk) < ChunkSize {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	var sum []byte
	if err == nil {
		sum, err = writeLines(ctx, store, contentsKey(prefix), idsOf(contents))
	}
	if err != nil {
		return Stored{}, fmt.Errorf("write list: %w", err)
	}
	list.Digest = hex.EncodeToString(sum)
	return list, nil
}

// Run returns the chunks as a run for Merge.
func (s Stored) Run() Run {
	run := make(Run, s.Chunks)
	for chunk := range run {
		run[chunk] = part{key: chunkKey(s.Prefix, chunk), sum: s.sums[chunk]}
	}
	return run
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
	sums   [][]byte // SHA-256 of every chunk
}

// Open opens a list that Write has stored with this digest. The digest comes from the job's record: without it, whoever can
// write to the bucket could add patients to a cohort. Open reads the table of contents at each call, so that it fails for a
// deleted list.
func (c *Cache) Open(ctx context.Context, store *objects.Store, prefix, digest string) (*List, error) {
	l := &List{store: store, cache: c, prefix: prefix}
	if err := l.readContents(ctx, digest); err != nil {
		return nil, fmt.Errorf("open list: %w", err)
	}
	if !slices.IsSorted(l.firsts) {
		return nil, errors.New("open list: the index is damaged")
	}
	return l, nil
}

// readContents reads the first id and the digest of every chunk.
func (l *List) readContents(ctx context.Context, digest string) error {
	contents, err := readLines(ctx, l.store, digested(contentsKey(l.prefix), digest))
	if err != nil {
		return err
	}
	for _, line := range contents {
		first, digest, _ := strings.Cut(line, " ")
		l.firsts = append(l.firsts, first)
		l.sums = append(l.sums, digested("", digest).sum)
	}
	return nil
}

// Chunks returns the number of chunks.
func (l *List) Chunks() int { return len(l.firsts) }

// First returns the first id of the chunk.
func (l *List) First(chunk int) (string, error) {
	if chunk < 0 || chunk >= len(l.firsts) {
		return "", fmt.Errorf("list has %d chunks, not a chunk %d", len(l.firsts), chunk)
	}
	return l.firsts[chunk], nil
}

// Chunk returns the ids of the chunk, ascending. Do not modify them.
func (l *List) Chunk(ctx context.Context, chunk int) ([]string, error) {
	if chunk < 0 || chunk >= len(l.firsts) {
		return nil, fmt.Errorf("list has %d chunks, not a chunk %d", len(l.firsts), chunk)
	}
	key := chunkKey(l.prefix, chunk)
	if ids, cached := l.cache.chunks.Get(key); cached {
		return ids, nil
	}
	ids, err := readLines(ctx, l.store, part{key: key, sum: l.sums[chunk]})
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

// contentsKey returns the key of a list's table of contents: the first id and the digest of every chunk.
func contentsKey(prefix string) string { return prefix + "contents" }
