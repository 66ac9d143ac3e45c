package ndjson

import (
	"slices"
	"sort"
)

// chunked is a slice in chunks. It grows without copying, so growth never needs twice the memory.
type chunked[T any] struct {
	chunks [][]T
	n      int
}

const chunkBits, chunkSize = 13, 1 << 13

func (c *chunked[T]) at(i int) *T { return &c.chunks[i>>chunkBits][i&(chunkSize-1)] }

func (c *chunked[T]) Swap(i, j int) { a, b := c.at(i), c.at(j); *a, *b = *b, *a }

func (c *chunked[T]) add(element T) {
	last := c.n >> chunkBits
	switch {
	case last < len(c.chunks):
	case last == 0:
		c.chunks = append(c.chunks, nil) // most types have few resources: the first chunk grows as a slice
	default:
		c.chunks = append(c.chunks, make([]T, 0, chunkSize))
	}
	c.chunks[last] = append(c.chunks[last], element)
	c.n++
}

// keep removes the elements that are not wanted.
func (c *chunked[T]) keep(wanted func(i int) bool) {
	kept := 0
	for i := range c.n {
		if wanted(i) {
			*c.at(kept) = *c.at(i)
			kept++
		}
	}
	c.n = kept
	c.chunks = slices.Delete(c.chunks, (kept+chunkSize-1)>>chunkBits, len(c.chunks))
	if rest := kept & (chunkSize - 1); rest > 0 { // add appends after the kept elements
		c.chunks[len(c.chunks)-1] = c.chunks[len(c.chunks)-1][:rest]
	}
}

// sort sorts in place.
func (c *chunked[T]) sort(compare func(a, b *T) int) { sort.Sort(sorter[T]{c, compare}) }

type sorter[T any] struct {
	*chunked[T]
	compare func(a, b *T) int
}

func (s sorter[T]) Len() int           { return s.n }
func (s sorter[T]) Less(i, j int) bool { return s.compare(s.at(i), s.at(j)) < 0 }
