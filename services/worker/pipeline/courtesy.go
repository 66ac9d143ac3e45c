package pipeline

import (
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
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
	// courtesyLasts is how long a unit is taken for short.
	courtesyLasts = 2 * time.Second
)

// shorts counts the short units that are under way in the process, by job.
type shorts struct {
	mu    sync.Mutex
	total int
	byJob map[export.JobID]int
}

// begin counts one; the function that it returns takes it back.
func (s *shorts) begin(job export.JobID) (end func()) {
	s.add(job, 1)
	return func() { s.add(job, -1) }
}

func (s *shorts) add(job export.JobID, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byJob == nil {
		s.byJob = map[export.JobID]int{}
	}
	s.total += n
	if s.byJob[job] += n; s.byJob[job] == 0 {
		delete(s.byJob, job)
	}
}

// ofOthers reports whether one of another job is under way.
func (s *shorts) ofOthers(job export.JobID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total > s.byJob[job]
}

// courtesy makes a long unit give way to short ones of other jobs in the same process. A small job needs little of the
// processor but hundreds of answers one after the other, from the stores and from the worker itself, and each of them
// comes later the more the long units use the machine (pitfall 25).
type courtesy struct {
	shorts  *shorts // nil for a unit that gives way to nobody
	job     export.JobID
	written int
	since   time.Time
}

// wrote counts what the unit has written, and rests when it is time to.
func (c *courtesy) wrote(bytes int) {
	if c.written += bytes; c.written < courtesyBytes || c.shorts == nil {
		return
	}
	c.written = 0
	now := time.Now()
	if c.shorts.ofOthers(c.job) && !c.since.IsZero() {
		time.Sleep(min(courtesyShare*now.Sub(c.since), courtesyMost))
		now = time.Now()
	}
	c.since = now
}
