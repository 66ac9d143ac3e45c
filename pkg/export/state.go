package export

import "slices"

// State is the state of a job (docs/state-machine.md).
type State string

// The states. A purged job has none: its record is gone.
const (
	Scheduled State = "scheduled" // recorded; the plan has not begun
	Planning  State = "planning"  // the cohort is resolved and the units are cut
	Running   State = "running"   // units are being exported
	Sealing   State = "sealing"   // all units are closed; the manifest is being written
	Completed State = "completed" // the manifest is written
	Failed    State = "failed"    // the job has no result; Failure is the reason
	Cancelled State = "cancelled" // its owner deleted it; waiting to be purged
	Expired   State = "expired"   // its retention is over; waiting to be purged
)

// transitions has the next states of each state. Every transition is one compare-and-set script in the job store, which
// refuses a job whose state is not in Before(to).
var transitions = map[State][]State{
	Scheduled: {Planning, Failed, Cancelled},
	Planning:  {Running, Failed, Cancelled},
	Running:   {Sealing, Failed, Cancelled},
	Sealing:   {Completed, Failed, Cancelled},
	Completed: {Cancelled, Expired},
	Failed:    {Cancelled, Expired},
	Cancelled: {},
	Expired:   {},
}

// States lists every state in the order of a job's life.
func States() []State {
	return []State{Scheduled, Planning, Running, Sealing, Completed, Failed, Cancelled, Expired}
}

// CanBecome reports whether a job in state s may move to the state next.
func (s State) CanBecome(next State) bool { return slices.Contains(transitions[s], next) }

// Before lists the states from which a job may move to the state s, in the order of a job's life.
func (s State) Before() []State {
	var from []State
	for _, candidate := range States() {
		if candidate.CanBecome(s) {
			from = append(from, candidate)
		}
	}
	return from
}

// Live reports whether a job in this state still has work to do.
func (s State) Live() bool {
	return s == Scheduled || s == Planning || s == Running || s == Sealing
}
