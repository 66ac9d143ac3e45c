package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// events collects what happens in a run: what the services log about units, when jobs may have been lost, and what must not
// have happened.
type events struct {
	out   io.Writer
	keep  string // folder for the logs of services, "" for none
	began time.Time

	mu         sync.Mutex
	violations []string
	outcomes   map[string]int       // of units, since the fault began
	problems   map[string]string    // why units did not end well, by job and unit, until they end
	done       map[string]time.Time // when units were done, by job and unit
	units      []unitSeen           // some of those that were claimed
	faults     []faultSeen          // that have ended, and those that are on
	visits     map[string]int       // outcomes of visits
	mended     chan struct{}        // is closed at the end of a fault, and replaced
}

// unitSeen is a unit that a worker has claimed.
type unitSeen struct{ job, unit, kind string }

type faultSeen struct {
	fault *fault
	to    time.Time // zero while it is on
}

func newEvents(out io.Writer, keep string) *events {
	return &events{
		out: out, keep: keep, began: time.Now(), outcomes: map[string]int{}, done: map[string]time.Time{},
		visits: map[string]int{}, problems: map[string]string{}, mended: make(chan struct{}),
	}
}

// say prints a line with the time since the start.
func (e *events) say(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, _ = fmt.Fprintf(e.out, "%7.1f s  %s\n", time.Since(e.began).Seconds(), fmt.Sprintf(format, args...))
}

// violated notes that something happened which must not.
func (e *events) violated(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	e.say("VIOLATION: %s", text)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.violations = append(e.violations, text)
}

// note reads a log entry of a service.
func (e *events) note(name string, entry map[string]any) {
	e.write(name, entry)
	text := func(key string) string { value, _ := entry[key].(string); return value }
	switch text("msg") {
	case "unit claimed":
		e.mu.Lock()
		defer e.mu.Unlock()
		const most = 500
		seen := unitSeen{text("job_id"), text("unit"), text("kind")}
		if len(e.units) < most {
			e.units = append(e.units, seen)
		} else {
			e.units[rand.IntN(most)] = seen
		}
	case "unit will be retried", "unit failed for good":
		e.mu.Lock()
		defer e.mu.Unlock()
		e.problems[text("job_id")+" "+text("unit")] = text("err")
	case "unit ended":
		e.unitEnded(name, text("job_id")+" "+text("unit"), text("outcome"))
	case "unit lost its worker":
		if !e.anySince(time.Now().Add(-aftermath), func(f *fault) bool { return f.deaf }) {
			e.violated("%s took the worker of %s %s for lost", name, text("job_id"), text("unit"))
		}
	}
}

// aftermath is how long after its end a fault may show in the logs: the silence after which a worker counts as lost, and
// the delay of a retry.
const aftermath = 40 * time.Second

func (e *events) unitEnded(name, unit, outcome string) {
	e.mu.Lock()
	e.outcomes[outcome]++
	problem, before := e.problems[unit], e.done[unit]
	delete(e.problems, unit)
	if outcome == "done" {
		e.done[unit] = time.Now()
	}
	e.mu.Unlock()
	switch {
	case outcome == "done" && !before.IsZero() && !e.lostSince(before): // a Redis that has lost its data gives units out again
		e.violated("%s did unit %s, which was done", name, unit)
	case (outcome == "retried" || outcome == "failed") && !e.excused(time.Now().Add(-aftermath)):
		e.violated("%s: unit %s has %s: %s", name, unit, outcome, problem) // an outage costs no attempt
	}
}

// write appends the entry to the file of the service, if logs are kept.
func (e *events) write(name string, entry map[string]any) {
	if e.keep == "" {
		return
	}
	entry["seen"] = time.Since(e.began).Seconds() // its own clock may be wrong
	text, err := json.Marshal(entry)
	if err == nil {
		var file *os.File
		if file, err = os.OpenFile(filepath.Join(e.keep, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			_, err = file.Write(append(text, '\n'))
			err = errors.Join(err, file.Close())
		}
	}
	if err != nil {
		e.violated("keep the log of %s: %v", name, err)
	}
}

// visited counts the outcome of a visit.
func (e *events) visited(outcome string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.visits[outcome]++
}

// lostSince reports whether jobs may have been lost since the instant.
func (e *events) lostSince(at time.Time) bool {
	return e.anySince(at, func(f *fault) bool { return f.loses })
}

// visitors returns how many visits have ended.
func (e *events) visitors() (many int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range e.visits {
		many += n
	}
	return many
}

// begin notes that faults are on.
func (e *events) begin(those []*fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range those {
		e.faults = append(e.faults, faultSeen{fault: f})
	}
	e.outcomes = map[string]int{}
}

// end notes that the newest faults are over, and returns how units ended meanwhile.
func (e *events) end(many int) (outcomes map[string]int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range many {
		e.faults[len(e.faults)-1-i].to = time.Now()
	}
	close(e.mended)
	e.mended = make(chan struct{})
	outcomes = e.outcomes
	e.outcomes = map[string]int{}
	return outcomes
}

// nextMended is closed when the next fault has ended.
func (e *events) nextMended() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mended
}

// excused returns whether a fault since the instant may cost units their attempts.
func (e *events) excused(since time.Time) bool {
	return e.anySince(since, func(f *fault) bool { return f.fails })
}

// anySince reports whether such a fault is on, or has ended after the instant.
func (e *events) anySince(at time.Time, such func(*fault) bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, seen := range e.faults {
		if such(seen.fault) && (seen.to.IsZero() || seen.to.After(at)) {
			return true
		}
	}
	return false
}
