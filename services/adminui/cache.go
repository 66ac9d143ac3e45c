package adminui

import (
	"context"
	"maps"
	"time"
)

const (
	cacheLife     = time.Second      // how long a value is served to other browsers
	cacheFactor   = 10               // a value is kept at least this many times as long as its read took
	cacheLifeMost = 10 * time.Second // upper limit of that, because operators act on what the page shows
	cacheSize     = 64               // values
)

// cache keeps recently read values, so that many browsers cause no more reads than one. It reads one value at a time.
type cache[T any] struct {
	now    func() time.Time
	turn   chan struct{} // holds one token during a read
	values map[string]cached[T]
}

type cached[T any] struct {
	value T
	until time.Time
}

func newCache[T any](now func() time.Time) *cache[T] {
	return &cache[T]{now: now, turn: make(chan struct{}, 1), values: map[string]cached[T]{}}
}

// get returns the value of the key. It calls read if the value is missing or too old. Errors are not cached.
func (c *cache[T]) get(ctx context.Context, key string, read func(context.Context) (T, error)) (T, error) {
	var none T
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { <-c.turn }()
	begun := c.now()
	if old, ok := c.values[key]; ok && begun.Before(old.until) {
		return old.value, nil
	}
	value, err := read(ctx)
	if err != nil {
		return none, err
	}
	ended := c.now()
	maps.DeleteFunc(c.values, func(_ string, old cached[T]) bool { return !ended.Before(old.until) })
	if len(c.values) >= cacheSize {
		clear(c.values)
	}
	c.values[key] = cached[T]{value, ended.Add(min(cacheLifeMost, max(cacheLife, cacheFactor*ended.Sub(begun))))}
	return value, nil
}

func (c *cache[T]) clear() {
	c.turn <- struct{}{}
	clear(c.values)
	<-c.turn
}
