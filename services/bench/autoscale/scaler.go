package autoscale

import (
	"math"
	"time"
)

// tolerance is how far a value may be from its target before anything is done about it, as the controller manager has it.
const tolerance = 0.1

// Scaler is the state of an autoscaler between two looks. Its clock is whatever the caller gives, so time may run faster.
type Scaler struct {
	Object *Object

	lastActive time.Time
	advice     []change // what the metric asked for, within the longer window
	changes    []change // what was done: by how many workers
}

type change struct {
	at    time.Time
	count int
}

// Activate is KEDA's part, done at each polling interval: from none to some when there is work, to none when there has
// been none for the cooldown period. It returns how many there should be.
func (s *Scaler) Activate(now time.Time, current int, value float64) int {
	spec := s.Object.Spec
	if value > 0 {
		s.lastActive = now
		if current == 0 {
			return s.record(now, current, max(spec.Min, 1))
		}
		return current
	}
	if spec.Min == 0 && current > 0 && now.Sub(s.lastActive) > seconds(spec.Cooldown) {
		return s.record(now, current, 0)
	}
	return current
}

// Desired is the part of the HorizontalPodAutoscaler, done at each sync period. With none it does nothing.
func (s *Scaler) Desired(now time.Time, current int, value float64) int {
	if current == 0 {
		return 0
	}
	spec := s.Object.Spec
	want := current
	if ratio := value / (s.Object.target * float64(current)); math.Abs(ratio-1) > tolerance {
		want = int(math.Ceil(value / s.Object.target))
	}
	want = s.stabilize(now, current, want)
	behavior := spec.Advanced.HPA.Behavior
	switch {
	case want > current:
		limit := 0
		for _, policy := range behavior.Up.Policies {
			start := current - s.sum(now, policy.Period, +1) + s.sum(now, policy.Period, -1)
			most := start + policy.Value
			if policy.Type == "Percent" {
				most = int(math.Ceil(float64(start) * (1 + float64(policy.Value)/100)))
			}
			limit = max(limit, most)
		}
		want = min(want, max(limit, current))
	case want < current:
		limit := current
		for _, policy := range behavior.Down.Policies {
			start := current - s.sum(now, policy.Period, +1) + s.sum(now, policy.Period, -1)
			least := start - policy.Value
			if policy.Type == "Percent" {
				least = int(float64(start) * (1 - float64(policy.Value)/100))
			}
			limit = min(limit, least)
		}
		want = max(want, limit)
	}
	return s.record(now, current, min(max(want, spec.Min, 1), spec.Max))
}

// stabilize takes the highest advice of the window before it scales down, the lowest before it scales up.
func (s *Scaler) stabilize(now time.Time, current, want int) int {
	behavior := s.Object.Spec.Advanced.HPA.Behavior
	up, down := want, want
	longest := max(behavior.Up.Window, behavior.Down.Window)
	kept := s.advice[:0]
	for _, a := range s.advice {
		age := now.Sub(a.at)
		if age < seconds(behavior.Up.Window) {
			up = min(up, a.count)
		}
		if age < seconds(behavior.Down.Window) {
			down = max(down, a.count)
		}
		if age < seconds(longest) {
			kept = append(kept, a)
		}
	}
	s.advice = append(kept, change{now, want})
	return min(max(current, up), down)
}

// sum is by how many workers was scaled in one direction within the period.
func (s *Scaler) sum(now time.Time, period, direction int) int {
	total := 0
	for _, c := range s.changes {
		if c.count*direction > 0 && now.Sub(c.at) < seconds(period) {
			total += c.count * direction
		}
	}
	return total
}

func (s *Scaler) record(now time.Time, current, want int) int {
	if want != current {
		s.changes = append(s.changes, change{now, want - current})
	}
	return want
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
