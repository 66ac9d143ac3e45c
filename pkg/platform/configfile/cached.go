package configfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Cached is a file that is read and parsed again when it changes. Replace the file by renaming. Its methods may be called
// from any goroutine.
type Cached[T any] struct {
	path  string
	limit int // bytes
	parse func([]byte) (T, error)

	mu      sync.Mutex
	seen    fs.FileInfo // of the file that was read
	value   T
	problem error // why there is no value
}

// Open reads a file of at most limit bytes.
func Open[T any](path string, limit int, parse func([]byte) (T, error)) (*Cached[T], error) {
	c := &Cached[T]{path: path, limit: limit, parse: parse}
	c.load()
	return c, c.problem
}

// Get returns the parsed file. While the file is missing or invalid it returns an error, not the last valid value, because
// the change may be a revocation.
func (c *Cached[T]) Get() (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.path)
	if err != nil {
		return *new(T), err
	}
	if c.seen == nil || !SameContent(info, c.seen) {
		c.load()
	}
	return c.value, c.problem
}

// load sets the value or the problem. The caller holds the lock, or c is not shared yet.
func (c *Cached[T]) load() {
	c.value, c.seen, c.problem = *new(T), nil, errors.New("not read") // if parse panics
	var data []byte
	if data, c.seen, c.problem = ReadStable(c.path, c.limit); c.problem != nil {
		return
	}
	if c.value, c.problem = c.parse(data); c.problem != nil {
		c.value, c.problem = *new(T), fmt.Errorf("%s: %w", filepath.Base(c.path), c.problem)
	}
}
