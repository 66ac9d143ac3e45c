package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

var theOwners = []export.Owner{{Issuer: "i", Subject: "s"}, {Issuer: "i", Subject: "t"}}

const mostJobs = 6 // of a history

// kickOff starts a job, or joins one with the same request.
func (w *world) kickOff() {
	n := len(w.jobs)
	j := &job{
		id: export.JobID(strings.Repeat(string(rune('a'+n)), 26)), owner: rapid.SampledFrom(theOwners).Draw(w.t, "owner"),
		request: export.Request{URL: fmt.Sprintf("https://x/fhir/Group/g/$export?n=%d", n), GroupID: "g", Types: []string{ownType}},
	}
	if rapid.Bool().Draw(w.t, "follows references") {
		j.request.Types = append(j.request.Types, followedType)
	}
	var running []string
	var twin *job
	for _, other := range w.jobs {
		is := w.seen.jobs[other.id]
		if other.owner == j.owner && isLive(is.state()) {
			running = append(running, string(other.id))
			if is.fields["unconfirmed"] == "" && !other.asked { // for an unconfirmed one the kick-off waits
				twin = other
			}
		}
	}
	if twin != nil && rapid.Bool().Draw(w.t, "joins") {
		j.request = twin.request
	} else {
		twin = nil
	}
	var asked []string
	if twin == nil && rapid.IntRange(0, 3).Draw(w.t, "patients") == 3 {
		j.asked, asked = true, []string{"p"}
	}
	w.jobs = append(w.jobs, j)
	stored := export.Job{ID: j.id, State: export.Scheduled, Created: w.clock.Now(), Owner: j.owner, Request: j.request}
	var got export.JobID
	crooked, dead := false, false
	err := w.perform(start, 5, func() (err error) {
		got, err = w.lifecycle.Start(w.ctx, stored, asked, jobstore.Admission{Limit: liveJobs, Join: true},
			func(export.JobID) error { return nil })
		crooked, dead = w.crooked, w.link.away || w.link.fault.dies
		return err
	})
	if w.interrupted {
		return
	}
	is, full := w.seen.jobs[j.id], jobstore.FullError{}
	switch {
	case err != nil && !dead && is.state() != gone:
		w.t.Fatalf("kick-off: %v, and the job is %s", err, is.state())
	case err != nil && !dead && asked != nil && len(w.bucket(j.id)) > 0:
		w.t.Fatalf("kick-off: %v, and the list of patients is left", err)
	case err == nil && got == j.id && (is.state() != scheduled || is.fields["unconfirmed"] != ""):
		w.t.Fatalf("kick-off: the id was returned, and the job is %s, unconfirmed: %q", is.state(), is.fields["unconfirmed"])
	case crooked:
	case twin != nil:
		if err != nil || got != twin.id && w.seen.jobs[got].fields["fingerprint"] != w.seen.jobs[twin.id].fields["fingerprint"] {
			w.t.Fatalf("kick-off: %q, %v, want that of %s", got, err, twin.id)
		}
	case errors.As(err, &full) != (len(running) >= liveJobs), err != nil && len(full.Running) != len(running):
		w.t.Fatalf("kick-off: %v, and the owner has %d live jobs", err, len(running))
	}
}

func (w *world) cancel(j *job) {
	before := w.seen.jobs[j.id].state()
	err := w.perform(cancel, 2, func() error { _, err := w.lifecycle.Cancel(w.ctx, j.id); return err })
	w.answered("cancel", j, err, before != gone && before != expired)
	if err == nil && w.seen.jobs[j.id].state() != gone && w.seen.jobs[j.id].state() != cancelled {
		w.t.Fatalf("cancel: %s is %s", j.id[:1], w.seen.jobs[j.id].state())
	}
}

func (w *world) expireNow(j *job) {
	before := w.seen.jobs[j.id].state()
	err := w.perform(expire, 4, func() error { return w.lifecycle.ExpireNow(w.ctx, j.id) })
	w.answered("expire", j, err, before != gone && !isLive(before))
}

// answered compares the answer to a call about a job with what the model allows.
func (w *world) answered(call string, j *job, err error, want bool) {
	if unavailable(err) || w.interrupted {
		return
	}
	if err != nil && !jobs.Gone(err) || (err == nil) != want {
		w.t.Fatalf("verdict: %s of %s: %v; the model accepts it: %v", call, j.id[:1], err, want)
	}
}

// poll reads the status as an owner does. An owner who has got a 404 never sees the job again (spec 6).
func (w *world) poll(j *job) {
	var got export.Job
	err := w.perform(other, 1, func() (err error) { got, err = w.store.Job(w.ctx, j.id); return err })
	if unavailable(err) {
		return
	}
	is, now := w.seen.jobs[j.id], w.clock.Now()
	visible := err == nil && got.Visible(now)
	ends := is.number("expires")
	want := slices.Contains(append(slices.Clone(live), completed, failed), is.state()) && (ends == 0 || now.UnixMilli() < ends)
	if visible != want || visible && j.hidden {
		w.t.Fatalf("visible: %s: %v, want %v; it was hidden: %v", j.id[:1], visible, want, j.hidden)
	}
	_, known := w.ledger.sums[j.id] // else its kick-off is not finished
	j.hidden = known && !visible
	if !visible {
		return
	}
	if _, err := w.store.AllowPoll(w.ctx, j.id, time.Minute, 10); err != nil && !unavailable(err) {
		w.t.Fatal(err)
	}
	if got.State != export.Completed {
		return
	}
	for name := range is.files {
		file, err := w.store.File(w.ctx, j.id, name)
		must(w.t, err)
		object, err := w.objects.Open(w.ctx, file.Key, 0, -1)
		must(w.t, err)
		must(w.t, object.Close())
		break
	}
}

// hold reads what an owner holds.
func (w *world) hold(owner export.Owner) {
	var got jobstore.Held
	err := w.perform(other, 1, func() (err error) { got, err = w.store.Held(w.ctx, owner); return err })
	if unavailable(err) {
		return
	}
	must(w.t, err)
	var want jobstore.Held
	for _, job := range w.jobs {
		is := w.seen.jobs[job.id]
		if job.owner == owner && (is.state() == completed || is.state() == failed) &&
			is.number("expires") > w.clock.Now().UnixMilli() {
			want.Finished++
			if is.state() == completed {
				want.Stored += is.number("stored")
			}
		}
	}
	if got.Finished != want.Finished || got.Stored != want.Stored {
		w.t.Fatalf("quota: the owner holds %+v, want %+v", got, want)
	}
}

// reopenUnit runs a unit again for an operator.
func (w *world) reopenUnit(j *job, unit string) {
	is := w.seen.jobs[j.id]
	err := w.perform(reopen, 3, func() error { return w.lifecycle.RetryUnit(w.ctx, j.id, export.UnitID(unit)) })
	w.answered("reopen "+unit, j, err, isLive(is.state()) && mayReopen(is, unit))
}

// mayReopen reports whether the unit is open, or has failed while no worker has begun a later stage.
func mayReopen(is *record, unit string) bool {
	place, _ := is.place(unit)
	if place != closed {
		return place == issued || place == claimed
	}
	if is.results[unit].Failure == "" || is.state() == sealing {
		return false
	}
	later := []string{string(export.SealUnit)}
	if is.units[unit].Kind == export.KindExport {
		later = append(later, string(export.ReferencesUnit))
	}
	for _, stage := range later {
		if place, _ := is.place(stage); place == claimed || place == closed {
			return false
		}
	}
	for _, other := range is.units {
		if unit == string(export.ReferencesUnit) && other.Kind == export.KindExportReferenced {
			return false // it was cut by an attempt at the references
		}
	}
	return true
}

// skipUnit gives a unit up for an operator.
func (w *world) skipUnit(j *job, unit string) {
	is := w.seen.jobs[j.id]
	place, _ := is.place(unit)
	const reason = "an operator gave it up"
	err := w.perform(skip, 3, func() error { return w.lifecycle.GiveUpUnit(w.ctx, j.id, export.UnitID(unit), reason) })
	w.answered("give up "+unit, j, err, unit != string(export.PlanUnit) && unit != string(export.SealUnit) &&
		(is.results[unit].Failure == reason || isLive(is.state()) && (place == issued || place == claimed || place == waiting)))
}

// pass runs a pass of the scheduler.
func (w *world) pass(by step, calls int, run func() error) {
	_ = w.perform(by, calls, func() error {
		err := run()
		if !w.crooked {
			must(w.t, err)
		}
		return nil
	})
}

// rescuePass runs the rescue. Without a fault it leaves no silent unit without a task.
func (w *world) rescuePass() {
	before := w.seen
	clean := false
	w.pass(rescue, 8, func() error {
		err := w.scheduler.Rescue(w.ctx)
		clean = !w.crooked
		return err
	})
	if !clean {
		return
	}
	queued := map[string]string{} // id -> state
	for _, k := range w.seen.tasks {
		queued[k.id] = k.state
	}
	for _, job := range w.jobs {
		was, is := before.jobs[job.id], w.seen.jobs[job.id]
		for unit := range is.issued {
			from, _ := was.place(unit)
			to, _ := is.place(unit)
			silent := was != nil && was.issued[unit] <= float64(w.clock.Now().Add(-silence).UnixMilli())
			if to != issued || from == issued && !silent || !isLive(is.state()) || is.fields["unconfirmed"] != "" {
				continue
			}
			state := queued[fmt.Sprintf("%s:%s:%d", job.id, unit, is.fences[unit])]
			if state == "" || from == issued && state != "pending" && state != "scheduled" {
				w.t.Fatalf("rescue: %s %s (%s before) at fence %d has a task in state %q", job.id[:1], unit, from, is.fences[unit],
					state)
			}
		}
	}
}

// purge delivers the purges of a job, all at once: Asynq's clock decides how many there are.
func (w *world) purge(id export.JobID) {
	taken := slices.DeleteFunc(slices.Clone(w.seen.purges), func(k task) bool { return k.job != id })
	for _, k := range taken {
		w.take(k)
	}
	before := w.seen.jobs[id].state()
	err := w.perform(purge, 3, func() error { return w.scheduler.Purge(w.ctx, id) })
	for _, k := range taken {
		if err != nil {
			w.requeue(k)
		} else {
			w.done(k)
		}
	}
	if err == nil && !w.interrupted && w.seen.jobs[id].state() == gone && before != scheduled {
		if left := w.bucket(id); len(left) > 0 {
			w.t.Fatalf("purge: %s has left %v", id[:1], left)
		}
	}
	w.observe(other)
}

func (w *world) sweep() {
	clean := false
	w.pass(other, 4, func() error {
		err := w.scheduler.Sweep(w.ctx)
		clean = !w.crooked
		return err
	})
	if clean {
		w.checkBucket()
	}
}

// pause advances the clock by intervals in which a scheduler reaches Redis.
func (w *world) pause(intervals int) {
	for range intervals {
		w.clock.Advance(noteEvery)
		w.note()
	}
}

// leap advances the clock while no scheduler runs.
func (w *world) leap(d time.Duration) {
	w.clock.Advance(d)
	w.observe(other)
}
