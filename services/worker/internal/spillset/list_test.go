package spillset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// id returns the n'th id of the test lists. There are gaps between the ids (see between).
func id(n int) string { return fmt.Sprintf("p%06d", 2*n) }

// between returns an id that sorts directly after the n'th and is in no list.
func between(n int) string { return fmt.Sprintf("p%06d", 2*n+1) }

func stored(t *testing.T, store *objects.Store, n int) *List {
	t.Helper()
	list, err := NewCache().Open(t.Context(), store, prefix, write(t, store, n).Digest)
	must(t, err)
	if want := (n + ChunkSize - 1) / ChunkSize; list.Chunks() != want {
		t.Fatalf("%d chunks read, want %d", list.Chunks(), want)
	}
	return list
}

// write stores the first n ids.
func write(t *testing.T, store *objects.Store, n int) Stored {
	t.Helper()
	list, err := Write(t.Context(), store, prefix, func(yield func(string) error) error {
		for i := range n {
			if err := yield(id(i)); err != nil {
				return err
			}
		}
		return nil
	})
	must(t, err)
	if want := (n + ChunkSize - 1) / ChunkSize; list.Chunks != want || list.Count != int64(n) {
		t.Fatalf("%d ids in %d chunks, want %d in %d", list.Count, list.Chunks, n, want)
	}
	return list
}

func TestListsOfEverySize(t *testing.T) {
	store, _ := open(t)
	ctx := t.Context()
	for _, n := range []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2 * ChunkSize, 2*ChunkSize + 1} {
		list := stored(t, store, n)
		seen := 0
		for chunk := range list.Chunks() {
			ids, err := list.Chunk(ctx, chunk)
			must(t, err)
			for _, got := range ids {
				if got != id(seen) {
					t.Fatalf("%d ids: the %dth is %s", n, seen, got)
				}
				seen++
			}
		}
		if seen != n {
			t.Errorf("%d ids read, want %d", seen, n)
		}
		edges := []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2*ChunkSize - 1, 2 * ChunkSize, n - 1, n}
		for _, edge := range edges {
			if edge < 0 {
				continue
			}
			if there, err := list.Contains(ctx, id(edge)); err != nil || there != (edge < n) {
				t.Errorf("%d ids: contains the %dth: %v %v", n, edge, there, err)
			}
			if there, err := list.Contains(ctx, between(edge)); err != nil || there {
				t.Errorf("%d ids: contains an id after the %dth: %v %v", n, edge, there, err)
			}
			if place := list.Place(between(edge)); n > 0 && place != min(edge, n-1)/ChunkSize {
				t.Errorf("%d ids: place after the %dth is %d", n, edge, place)
			}
		}
		for _, before := range []string{"", "a", "p"} {
			if there, err := list.Contains(ctx, before); err != nil || there || list.Place(before) != -1 {
				t.Errorf("%d ids: %q is in chunk %d, contained: %v %v", n, before, list.Place(before), there, err)
			}
		}
		for _, chunk := range []int{-1, list.Chunks()} {
			if ids, err := list.Chunk(ctx, chunk); err == nil {
				t.Errorf("%d ids: chunk %d has %d", n, chunk, len(ids))
			}
		}
	}
}

func TestUnsortedInputIsRefused(t *testing.T) {
	store, _ := open(t)
	for _, ids := range [][]string{{"b", "a"}, {"a", "a"}, {"", ""}, {"a", "b", "a"}} {
		if _, err := Write(t.Context(), store, prefix, idsOf(ids)); err == nil {
			t.Errorf("%q was accepted", ids)
		}
	}
	broken := errors.New("broken")
	_, err := Write(t.Context(), store, prefix, func(func(string) error) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("the source's error: %v", err)
	}
	if _, err := NewCache().Open(t.Context(), store, prefix, "00"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("an unfinished list: %v", err)
	}
}

func TestADamagedListIsRefused(t *testing.T) {
	store, _ := open(t)
	for name, damage := range map[string]struct {
		key   string
		lines []string
	}{
		"another first id": {chunkKey(prefix, 0), []string{id(1), id(2)}},
		"unsorted":         {chunkKey(prefix, 0), []string{id(0), id(2), id(1)}},
		"no ids":           {chunkKey(prefix, 0), nil},
		"another chunk":    {chunkKey(prefix, 1), []string{id(0)}},
		"into the next":    {chunkKey(prefix, 0), []string{id(0), id(ChunkSize)}},
		"contents":         {contentsKey(prefix), []string{id(ChunkSize), id(0)}},
		"id too long":      {chunkKey(prefix, 0), []string{id(0), id(0) + strings.Repeat("x", 70<<10)}},
	} {
		t.Run(name, func(t *testing.T) {
			digest := write(t, store, 2*ChunkSize).Digest
			_, err := writeLines(t.Context(), store, damage.key, idsOf(damage.lines))
			must(t, err)
			for _, digest := range []string{digest, ""} {
				if readAll(t, store, digest) == nil {
					t.Errorf("accepted with the digest %q", digest)
				}
			}
		})
	}
	list := stored(t, store, 1)
	must(t, store.Delete(t.Context(), chunkKey(prefix, 0)))
	if _, err := list.Contains(t.Context(), id(0)); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a deleted chunk: %v", err)
	}
}

// readAll reads all chunks of the list at the prefix.
func readAll(t *testing.T, store *objects.Store, digest string) error {
	t.Helper()
	list, err := NewCache().Open(t.Context(), store, prefix, digest)
	for chunk := 0; err == nil && chunk < list.Chunks(); chunk++ {
		_, err = list.Chunk(t.Context(), chunk)
	}
	return err
}

// Whoever writes to the bucket may store a list that is sound by itself. It is refused because it is not the one that the
// job's record names.
func TestAReplacedListIsRefused(t *testing.T) {
	store, _ := open(t)
	chunk := func(ids ...string) func(*testing.T) {
		return func(t *testing.T) {
			_, err := writeLines(t.Context(), store, chunkKey(prefix, 0), idsOf(ids))
			must(t, err)
		}
	}
	for name, replace := range map[string]func(*testing.T){
		"one id more":  chunk(id(0), between(0), id(1), id(2)),
		"one id less":  chunk(id(0), id(2)),
		"another id":   chunk(id(0), between(0), id(2)),
		"a whole list": func(t *testing.T) { write(t, store, 4) },
		"an empty list": func(t *testing.T) {
			write(t, store, 0)
		},
		"no contents": func(t *testing.T) {
			_, err := writeLines(t.Context(), store, contentsKey(prefix), idsOf(nil))
			must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			digest := write(t, store, 3).Digest
			must(t, readAll(t, store, digest))
			replace(t)
			if readAll(t, store, digest) == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestACacheIsBounded(t *testing.T) { // pitfall 6
	store, proxy := open(t)
	const chunks = 3
	cache := newCache(chunks)
	list, err := cache.Open(t.Context(), store, prefix, write(t, store, (chunks+1)*ChunkSize).Digest)
	must(t, err)
	read := func(chunk int) (requests int) {
		t.Helper()
		before := proxy.Requests()
		ids, err := list.Chunk(t.Context(), chunk)
		must(t, err)
		if len(ids) != ChunkSize || ids[0] != id(chunk*ChunkSize) || ids[ChunkSize-1] != id((chunk+1)*ChunkSize-1) {
			t.Fatalf("chunk %d begins with %s", chunk, ids[0])
		}
		return proxy.Requests() - before
	}
	for chunk := range chunks {
		if read(chunk) == 0 || read(chunk) != 0 {
			t.Errorf("chunk %d is not read exactly once", chunk)
		}
	}
	read(0) // chunk 1 is now the least recently used
	read(chunks)
	if read(0) != 0 || read(1) == 0 || cache.chunks.Len() != chunks {
		t.Errorf("the cache holds %d chunks, or did not evict the least recently used", cache.chunks.Len())
	}
}

func TestRunsOfChunks(t *testing.T) {
	store, _ := open(t)
	written := write(t, store, 2*ChunkSize+3)
	list, err := NewCache().Open(t.Context(), store, prefix, written.Digest)
	must(t, err)
	for _, row := range []struct{ from, to, first, ids int }{
		{0, 1, 0, ChunkSize}, {1, 3, ChunkSize, ChunkSize + 3}, {0, 3, 0, 2*ChunkSize + 3}, {2, 2, 0, 0},
	} {
		ids, err := list.IDs(t.Context(), row.from, row.to)
		must(t, err)
		if len(ids) != row.ids || row.ids > 0 && ids[0] != id(row.first) || !slices.IsSorted(ids) {
			t.Errorf("chunks %d to %d: %d ids, want %d", row.from, row.to, len(ids), row.ids)
		}
	}
	if ids, err := list.IDs(t.Context(), 1, 4); err == nil {
		t.Errorf("%d ids of missing chunks", len(ids))
	}
	var merged []string
	whole := written.Run()
	err = Merge(t.Context(), store, prefix, []Run{whole, whole[1:2]}, func(id string) error {
		merged = append(merged, id)
		return nil
	})
	must(t, err)
	if whole, err := list.IDs(t.Context(), 0, 3); err != nil || !slices.Equal(merged, whole) {
		t.Errorf("merged %d ids, want %d (%v)", len(merged), len(whole), err)
	}
}

func TestListsShareACache(t *testing.T) {
	store, proxy := open(t)
	digest := write(t, store, 3*ChunkSize).Digest
	cache := NewCache()
	var units sync.WaitGroup
	for range 4 {
		list, err := cache.Open(t.Context(), store, prefix, digest)
		must(t, err)
		units.Go(func() {
			for range 50 {
				for chunk := range list.Chunks() {
					if ids, err := list.Chunk(t.Context(), chunk); err != nil || ids[0] != id(chunk*ChunkSize) {
						t.Errorf("chunk %d: %v", chunk, err)
					}
				}
			}
		})
	}
	units.Wait()
	list, err := cache.Open(t.Context(), store, prefix, digest)
	must(t, err)
	before := proxy.Requests()
	for chunk := range list.Chunks() {
		_, err := list.Chunk(t.Context(), chunk)
		must(t, err)
	}
	if n := proxy.Requests() - before; n != 0 {
		t.Errorf("%d requests for chunks that another list has read", n)
	}
}
