package model

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ledger is what the model remembers of a history beside the last view.
type ledger struct {
	holders   map[string]*holder // by job and unit
	granted   map[string]bool    // job, unit and fence of each claim
	tasks     []task             // every task that was ever taken
	sums      map[export.JobID]sums
	manifests map[string][]string // object key -> names of the files
	noted     time.Time           // when a scheduler last reached Redis
	over      time.Time           // when it last did after an outage
}

func newLedger() ledger {
	return ledger{
		holders: map[string]*holder{}, granted: map[string]bool{}, sums: map[export.JobID]sums{},
		manifests: map[string][]string{},
	}
}

// holder is the last attempt that has claimed a unit.
type holder struct {
	fence    int64
	token    string
	heard    time.Time // when it was last answered
	lost     bool      // the rescue took the unit from it, and nobody else has claimed it
	released bool      // it gave the unit back
	over     bool      // the unit is no longer its own for any other reason
}

func unitKey(job export.JobID, unit string) string { return string(job) + "/" + unit }

func (l *ledger) heard(lease export.Lease, at time.Time) {
	if h := l.holders[unitKey(lease.Job, string(lease.Unit.ID))]; h != nil && h.fence == lease.Fence {
		h.heard = at
	}
}

// holds reports whether the unit is the worker's: it was the last to claim it, and nobody but the rescue took it away.
func (w *world) holds(k *worker) bool {
	job, unit := w.seen.jobs[k.lease.Job], string(k.lease.Unit.ID)
	h := w.ledger.holders[unitKey(k.lease.Job, unit)]
	return isLive(job.state()) && h != nil && h.fence == k.lease.Fence && !h.released && !h.over
}

// closedBy reports whether the worker's result is the recorded one.
func (w *world) closedBy(k *worker) bool {
	job, unit := w.seen.jobs[k.lease.Job], string(k.lease.Unit.ID)
	text, err := json.Marshal(k.commit.Result)
	must(w.t, err)
	return job.raw[unit] == string(text) && job.fences[unit] == k.lease.Fence
}

// releasedBy reports whether the worker has given the unit back, and nothing has happened to the unit since.
func (w *world) releasedBy(k *worker) bool {
	job, unit := w.seen.jobs[k.lease.Job], string(k.lease.Unit.ID)
	h := w.ledger.holders[unitKey(k.lease.Job, unit)]
	place, _ := job.place(unit)
	return isLive(job.state()) && h != nil && h.fence == k.lease.Fence && h.released && place == issued &&
		job.fences[unit] == k.lease.Fence+1
}

// mayClaim reports whether the task of the worker is the current one of an unclaimed unit, or the claim is repeated.
func (w *world) mayClaim(k *worker) bool {
	job, unit := w.seen.jobs[k.task.job], string(k.task.unit)
	if !isLive(job.state()) {
		return false
	}
	place, _ := job.place(unit)
	if place == claimed {
		return w.ledger.holders[unitKey(k.task.job, unit)].token == k.token
	}
	open := len(job.waiting) + len(job.issued)
	return place == issued && job.fences[unit] == k.task.fence && (unit != string(export.SealUnit) || open == 1)
}

// follow compares the places of a job's units with those before the step, and notes who holds them.
func (w *world) follow(by step, id export.JobID, before, after *record) {
	var units []string
	for _, r := range []*record{before, after} {
		if r != nil {
			for unit := range r.units {
				units = append(units, unit)
			}
		}
	}
	slices.Sort(units)
	for _, unit := range slices.Compact(units) {
		w.followUnit(by, id, unit, before, after)
	}
}

func (w *world) followUnit(by step, id export.JobID, unit string, before, after *record) {
	from, _ := before.place(unit)
	to, _ := after.place(unit)
	var was int64
	if before != nil {
		was = before.fences[unit]
	}
	is := after.fences[unit]
	h := w.ledger.holders[unitKey(id, unit)]
	what := fmt.Sprintf("%s %s: %s at fence %d -> %s at fence %d by %q", id[:1], unit, from, was, to, is, by)
	if from == to && was == is && before.raw[unit] == after.raw[unit] {
		// The release of a worker that was taken for lost changes neither.
		if by == release && h != nil && h.lost && w.acting.lease.Fence == h.fence && before.attempts[unit+".cause"] == "lost" &&
			after.attempts[unit+".cause"] != "lost" {
			h.lost, h.released = false, true
		}
		return
	}
	if !slices.Contains(unitMoves[move{from, to}], by) {
		w.t.Fatalf("moves of units: %s", what)
	}
	if before.state() != gone && !isLive(before.state()) && (to != claimed || by != giveUp) {
		w.t.Fatalf("an ended job: %s", what)
	}
	switch (move{from, to}) {
	case move{issued, claimed}:
		if by != claim { // the last worker, which was taken for lost, turns up
			if h == nil || !h.lost || h.fence != is || w.acting.lease.Fence != is {
				w.t.Fatalf("fences: %s: it is not a lost worker's: %+v", what, h)
			}
			h.lost = false
			return
		}
		grant := unitKey(id, unit) + "@" + strconv.FormatInt(is, 10)
		if is <= was || w.ledger.granted[grant] {
			w.t.Fatalf("fences: %s: a fence is used twice", what)
		}
		w.ledger.granted[grant] = true
		w.ledger.holders[unitKey(id, unit)] = &holder{fence: is, token: w.acting.token, heard: w.clock.Now()}
	case move{claimed, issued}:
		if is <= was {
			w.t.Fatalf("fences: %s: the unit is free under an old fence", what)
		}
		switch by {
		case rescue:
			since := h.heard
			if w.ledger.over.After(since) {
				since = w.ledger.over
			}
			if now := w.clock.Now(); now.Sub(since) < silence || now.Sub(w.ledger.noted) > noteEvery {
				w.t.Fatalf("rescue: %s: it was heard of at %v, and Redis is back since %v", what, h.heard, w.ledger.over)
			}
			h.lost = true
		case release:
			h.released = true
		default:
			h.over = true
		}
	case move{issued, issued}:
		if is <= was {
			w.t.Fatalf("fences: %s: it is not a new one", what)
		}
		if h != nil {
			h.over = true
		}
	case move{issued, closed}, move{claimed, closed}, move{waiting, closed}:
		if by == skip {
			if is <= was {
				w.t.Fatalf("fences: %s: the commit of its worker would be accepted", what)
			}
		} else if h == nil || h.released || h.over || h.fence != is || w.acting.lease.Fence != is || from == issued && !h.lost {
			w.t.Fatalf("fences: %s: %+v does not hold it", what, h)
		}
		if h != nil {
			h.over = true
		}
	case move{closed, closed}:
		w.t.Fatalf("results: %s: a closed unit has changed", what)
	case move{closed, issued}:
		if before.results[unit].Failure == "" || is <= was {
			w.t.Fatalf("results: %s: only a failure may be retried, under a new fence", what)
		}
	case move{issued, back}, move{waiting, back}:
		if is <= was {
			w.t.Fatalf("fences: %s: its task is still valid", what)
		}
		if h != nil {
			h.over = true
		}
	}
}
