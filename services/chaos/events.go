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
	outcomes   map[string]int    // of units, since take
	problems   map[string]string // why units did not end well, by job and unit, until they end
	done       map[string]bool   // units that were done, by job and unit
	units      []unitSeen        // some of those that were claimed lately
	lost       time.Time         // when jobs were lately lost with the data of Redis
	faults     []faultSeen       // that have ended, and the one that is on
	visits     map[string]int    // outcomes of visits
	mended     chan struct{}     // closed when the next fault has ended
}

// unitSeen is a unit that a worker has claimed.
type unitSeen struct{ job, unit, kind string }

type faultSeen struct {
	fault    *fault
	from, to time.Time // to: zero while it is on
}

func newEvents(out io.Writer, keep string) *events {
	return &events{
		out: out, keep: keep, began: time.Now(), outcomes: map[string]int{}, done: map[string]bool{}, visits: map[string]int{},
		problems: map[string]string{},
		mended:   make(chan struct{}),
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
		unit := text("job_id") + " " + text("unit")
		e.mu.Lock()
		e.outcomes[text("outcome")]++
		twice := text("outcome") == "done" && e.done[unit]
		if text("outcome") == "done" {
			e.done[unit] = true
		}
		lost, problem := e.lost, e.problems[unit]
		delete(e.problems, unit)
		e.mu.Unlock()
		counts := text("outcome") == "retried" || text("outcome") == "failed"
		if counts && !e.excused(time.Now().Add(-10*time.Second)) {
			e.violated("%s: unit %s has %s: %s", name, unit, text("outcome"), problem) // an outage costs no attempt
		}
		if twice && lost.IsZero() {
			e.violated("%s did unit %s, which was done", name, unit)
		}
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

// lose notes that jobs may be gone from now on.
func (e *events) lose() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost = time.Now()
}

// lostSince reports whether jobs may have been lost since the instant.
func (e *events) lostSince(at time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost.After(at)
}

// begin and end note that a fault is on.
func (e *events) begin(f *fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = append(e.faults, faultSeen{fault: f, from: time.Now()})
	e.outcomes = map[string]int{}
}

func (e *events) end() (outcomes map[string]int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults[len(e.faults)-1].to = time.Now()
	close(e.mended)
	e.mended = make(chan struct{})
	return e.outcomes
}

// nextMended is closed when the next fault has ended.
func (e *events) nextMended() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mended
}

// excused returns whether a fault since the instant may cost units their attempts.
func (e *events) excused(since time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, seen := range e.faults {
		if seen.fault.fails && (seen.to.IsZero() || seen.to.After(since)) {
			return true
		}
	}
	return false
}
