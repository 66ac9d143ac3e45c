package pipeline

import (
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// throttleInterval is how many bytes a long unit writes between two checks for active short units: a few tenths of
	// a millisecond of compression.
	throttleInterval = 64 << 10
	// throttleRatio is the length of a pause relative to the work before it: a long unit keeps a quarter of its speed,
	// even if short units follow one another without end.
	throttleRatio = 3
	// throttleMaxPause bounds one pause. After a long interval the unit was blocked anyway.
	throttleMaxPause = 5 * time.Millisecond
	// shortUnitWindow is how long a unit counts as short.
	shortUnitWindow = 2 * time.Second
)

// activeShortUnits counts the short units that run in this process, by job.
type activeShortUnits struct {
	mu    sync.Mutex
	total int
	byJob map[export.JobID]int
}

// begin counts one unit; end removes it.
func (a *activeShortUnits) begin(job export.JobID) (end func()) {
	a.add(job, 1)
	return func() { a.add(job, -1) }
}

func (a *activeShortUnits) add(job export.JobID, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byJob == nil {
		a.byJob = map[export.JobID]int{}
	}
	a.total += n
	if a.byJob[job] += n; a.byJob[job] == 0 {
		delete(a.byJob, job)
	}
}

func (a *activeShortUnits) inOtherJobs(job export.JobID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total > a.byJob[job]
}

// throttle pauses a long unit while short units of other jobs run in the same process. A small job needs little CPU but
// makes hundreds of sequential requests to the stores and to the worker, and each response is slower when long units use
// all of the CPU (pitfall 25).
type throttle struct {
	active  *activeShortUnits // nil: no throttling, for a unit that is short itself
	job     export.JobID
	written int
	since   time.Time
}

// wrote counts the bytes that the unit has written, and pauses when due.
func (t *throttle) wrote(bytes int) {
	if t.written += bytes; t.written < throttleInterval || t.active == nil {
		return
	}
	t.written = 0
	now := time.Now()
	if t.active.inOtherJobs(t.job) && !t.since.IsZero() {
		time.Sleep(min(throttleRatio*now.Sub(t.since), throttleMaxPause))
		now = time.Now()
	}
	t.since = now
}
