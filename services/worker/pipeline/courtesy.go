package pipeline

import (
	"sync/atomic"
	"time"
)

const (
	// courtesyBytes is how much a long unit writes between two looks at whether short ones are under way: some tenths of
	// a millisecond of compressing.
	courtesyBytes = 64 << 10
	// courtesyShare is for how many times as long as it has worked it then rests, so that it goes on at a quarter of its
	// pace however many short units follow one another.
	courtesyShare = 3
	// courtesyMost bounds one rest: what has taken long was waiting already.
	courtesyMost = 5 * time.Millisecond
)

// courtesy makes a long unit give way to short ones of the same process. A small job needs little of the processor but
// hundreds of answers one after the other, from the stores and from the worker itself, and each of them comes later the
// more the long units use the machine (PITFALLS 25).
type courtesy struct {
	others  *atomic.Int64 // short units under way; nil for a unit that gives way to nobody
	written int
	since   time.Time
}

// wrote counts what the unit has written, and rests when it is time to.
func (c *courtesy) wrote(bytes int) {
	if c.written += bytes; c.written < courtesyBytes || c.others == nil {
		return
	}
	c.written = 0
	now := time.Now()
	if c.others.Load() > 0 && !c.since.IsZero() {
		time.Sleep(min(courtesyShare*now.Sub(c.since), courtesyMost))
		now = time.Now()
	}
	c.since = now
}
