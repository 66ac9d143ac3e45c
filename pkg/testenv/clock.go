package testenv

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"
)

// Clock moves only when a test advances it. Its methods may be called from any goroutine.
type Clock struct{ since atomic.Int64 } // nanoseconds after 1970

// NewClock returns a clock that shows the instant.
func NewClock(at time.Time) *Clock {
	c := &Clock{}
	c.since.Store(at.UnixNano())
	return c
}

// Now is the time of the clock, in UTC.
func (c *Clock) Now() time.Time { return time.Unix(0, c.since.Load()).UTC() }

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) { c.since.Add(int64(d)) }

// Buffer is a buffer for several goroutines, such as for a log.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns everything written since the last Reset.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Reset empties the buffer.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Reset()
}
