package model

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// budget is how long histories are drawn if nothing says how many.
const budget = 20 * time.Second

// TestHistories runs random histories: as many as SLUICE_TEST_SEEDS or RAPID_CHECKS says, else the first ones of a fixed seed,
// for as long as the budget. After a failure rapid prints the shrunk history. RAPID_FAILFILE repeats that one, RAPID_SEED the
// original.
func TestHistories(t *testing.T) {
	histories := testenv.Seeds(t, math.MaxInt32)
	begun, limited, failing := time.Now(), histories == math.MaxInt32 && !given("rapid.checks"), false
	seed := rand.Int() //nolint:gosec // a seed is no secret
	if limited {
		seed = 15
	}
	for name, value := range map[string]int{"rapid.checks": min(histories, 5000), "rapid.steps": 120, "rapid.seed": seed} {
		if !given(name) {
			must(t, flag.Set(name, strconv.Itoa(value)))
		}
	}
	t.Logf("-rapid.seed=%s", flag.Lookup("rapid.seed").Value)
	servers := openServers(t)
	drawn := 0
	rapid.Check(t, func(t *rapid.T) {
		if limited && !failing && time.Since(begun) > budget {
			return
		}
		drawn++
		failed := failing
		failing = true // a failed history ends in a panic, and is then repeated and shrunk
		w := newWorld(t, servers)
		t.Repeat(map[string]func(*rapid.T){"step": func(*rapid.T) { w.step() }})
		w.settle()
		failing = failed
	})
	t.Logf("%d histories", drawn)
}

// given reports whether the command line or the environment has set the flag.
func given(name string) bool {
	f := flag.Lookup(name)
	return f.Value.String() != f.DefValue || os.Getenv(strings.ToUpper(strings.ReplaceAll(name, ".", "_"))) != ""
}

// choices are the steps that can follow. The first ones are drawn most often: they are those of a job's progress.
type choices struct {
	names []string
	steps map[string]func()
}

func (c *choices) add(weight int, name string, do func()) {
	for range weight {
		c.names = append(c.names, name)
	}
	c.steps[name] = do
}

// step is one step of one actor. Most steps are those of workers.
func (w *world) step() {
	actors := []string{"worker", "scheduler", "client", "clock", "operator", "environment"}
	weights := []int{12, 3, 2, 2, 2, 1}
	all := map[string]*choices{}
	var names []string
	for i, actor := range actors {
		c := &choices{steps: map[string]func(){}}
		all[actor] = c
		switch actor {
		case "worker":
			w.workerChoices(c)
		case "scheduler":
			w.schedulerChoices(c)
		case "client":
			w.clientChoices(c)
		case "clock":
			w.clockChoices(c)
		case "operator":
			w.operatorChoices(c)
		case "environment":
			w.environmentChoices(c)
		}
		if len(c.names) > 0 {
			names = append(names, slices.Repeat([]string{actor}, weights[i])...)
		}
	}
	c := all[sample(w, "actor", names)]
	c.steps[sample(w, "step", c.names)]()
}

// sample draws one of the names. rapid draws the first and the last one most often, so the first is the last, too.
func sample(w *world, label string, names []string) string {
	return rapid.SampledFrom(append(slices.Clone(names), names[0])).Draw(w.t, label)
}

func (w *world) workerChoices(c *choices) {
	var waiting []task
	for _, k := range w.seen.tasks {
		if k.state != "active" {
			waiting = append(waiting, k)
		}
	}
	var free *worker
	for _, k := range w.workers {
		if k == w.acting {
			continue
		}
		if k.phase == idle {
			free = k
			continue
		}
		if k.asleep {
			c.add(1, k.name+" wakes up and "+string(k.phase), func() { k.asleep = false; w.goOn(k) })
			continue
		}
		c.add(6, k.name+" "+string(k.phase), func() { w.goOn(k) })
		if k.phase != claiming && k.phase != purging {
			c.add(1, k.name+" sends a heartbeat", func() { w.heartbeat(k) })
		}
		c.add(1, k.name+" dies", func() { w.die(k) })
		c.add(1, k.name+" is stopped", func() { k.asleep = true })
		if !w.link.away && !w.nested {
			c.add(2, k.name+" is stopped and taken for lost", func() { w.lose(k) })
		}
	}
	if free == nil {
		return
	}
	if len(waiting) > 0 && !w.link.away {
		c.add(5, free.name+" takes a task", func() { w.accept(free, draw(w, "task", waiting), false) })
	}
	if len(waiting) > 0 && !w.link.away && !w.nested {
		c.add(3, "all is well for a while", func() { w.well(rapid.IntRange(1, 30).Draw(w.t, "steps")) })
	}
}

// lose stops a worker until the rescue has taken its unit.
func (w *world) lose(k *worker) {
	k.asleep = true
	w.fair = true
	for range 2 {
		w.pause(2)
		w.rescuePass()
	}
	w.fair = false
}

// well lets the workers do some steps without a fault, so that histories reach the later stages.
func (w *world) well(steps int) {
	w.fair = true
	for ; steps > 0; steps-- {
		i := slices.IndexFunc(w.workers, func(k *worker) bool { return k.phase != idle && !k.asleep })
		free := slices.IndexFunc(w.workers, func(k *worker) bool { return k.phase == idle })
		if i < 0 {
			tasks := slices.DeleteFunc(slices.Clone(w.seen.tasks), func(k task) bool { return k.state == "active" })
			if len(tasks) == 0 || free < 0 {
				break
			}
			w.accept(w.workers[free], tasks[0], false)
			continue
		}
		w.goOn(w.workers[i])
	}
	w.fair = false
}

// draw draws one of the tasks.
func draw(w *world, label string, tasks []task) task {
	byName := map[string]task{}
	var names []string
	for _, k := range tasks {
		name := fmt.Sprintf("%s:%s:%d", k.job[:1], k.unit, k.fence)
		if _, there := byName[name]; !there {
			names = append(names, name)
		}
		byName[name] = k
	}
	return byName[rapid.SampledFrom(names).Draw(w.t, label)]
}

func (w *world) schedulerChoices(c *choices) {
	if w.link.away {
		return
	}
	c.add(4, "rescue pass", w.rescuePass)
	if len(w.seen.purges) > 0 {
		c.add(3, "purge", func() { w.purge(w.drawPurge()) })
	}
	c.add(1, "expire pass", func() { w.pass(expire, 6, func() error { return w.scheduler.Expire(w.ctx) }) })
	c.add(1, "expire pass of a full Redis", func() {
		w.pass(makeRoom, 8, func() error { _, err := w.lifecycle.ExpireDue(w.ctx, true); return err })
	})
	c.add(1, "sweep", w.sweep)
}

func (w *world) drawPurge() export.JobID {
	var ids []export.JobID
	for _, k := range w.seen.purges {
		ids = append(ids, k.job)
	}
	return rapid.SampledFrom(slices.Compact(ids)).Draw(w.t, "job")
}

func (w *world) clientChoices(c *choices) {
	if len(w.jobs) < mostJobs {
		c.add(3, "kick-off", w.kickOff)
	}
	if len(w.jobs) > 0 && !w.link.away {
		c.add(1, "status", func() { w.poll(w.drawJob()) })
		c.add(1, "quota", func() { w.hold(rapid.SampledFrom(theOwners).Draw(w.t, "owner")) })
		c.add(1, "cancel", func() { w.cancel(w.drawJob()) })
	}
}

func (w *world) clockChoices(c *choices) {
	c.add(2, "3 s", func() { w.pause(1) })
	c.add(2, "silence", func() { w.pause(2) })
	if !w.nested {
		c.add(1, "a minute", func() { w.pause(21) })
		c.add(1, "the retention ends", func() { w.leap(retention) })
	}
}

func (w *world) operatorChoices(c *choices) {
	if len(w.jobs) == 0 || w.link.away {
		return
	}
	onUnit := func(do func(*job, string)) func() {
		return func() {
			j := w.drawJob()
			units := append([]string{string(export.PlanUnit)}, slices.Sorted(maps.Keys(w.seen.jobs[j.id].units))...)
			do(j, rapid.SampledFrom(units).Draw(w.t, "unit"))
		}
	}
	var skips, retries []func() // of open units, and of failed ones
	for _, j := range w.jobs {
		is := w.seen.jobs[j.id]
		if !isLive(is.state()) {
			continue
		}
		for _, unit := range slices.Sorted(maps.Keys(is.units)) {
			place, _ := is.place(unit)
			if place == issued || place == claimed || place == waiting {
				skips = append(skips, func() { w.skipUnit(j, unit) })
			}
			if is.results[unit].Failure != "" {
				retries = append(retries, func() { w.reopenUnit(j, unit) })
			}
		}
	}
	one := func(of []func()) func() {
		return func() { of[rapid.IntRange(0, len(of)-1).Draw(w.t, "unit")]() }
	}
	if len(retries) > 0 {
		c.add(8, "runs a failed unit again", one(retries))
	}
	if len(skips) > 0 {
		c.add(3, "gives an open unit up", one(skips))
	}
	c.add(1, "gives a unit up", onUnit(w.skipUnit))
	c.add(2, "runs a unit again", onUnit(w.reopenUnit))
	c.add(1, "expires a job", func() { w.expireNow(w.drawJob()) })
}

func (w *world) drawJob() *job { return w.jobs[rapid.IntRange(0, len(w.jobs)-1).Draw(w.t, "job")] }

// environmentChoices are the faults that are no fault of a call.
func (w *world) environmentChoices(c *choices) {
	free := slices.IndexFunc(w.workers, func(k *worker) bool { return k.phase == idle && k != w.acting })
	if free >= 0 && len(w.ledger.tasks) > 0 {
		c.add(3, "an old task is delivered again", func() { w.accept(w.workers[free], draw(w, "task", w.ledger.tasks), true) })
	}
	switch {
	case w.nested:
	case w.link.away:
		c.add(6, "Redis is back", func() { w.link.away = false; w.note() })
		c.add(1, "20 s", func() { w.leap(20 * time.Second) })
	default:
		if len(w.seen.tasks) > 0 {
			c.add(2, "a task is lost", func() {
				w.done(draw(w, "task", w.seen.tasks))
				w.observe(other)
			})
			c.add(2, "Asynq retries a task", func() { // its worker may still run it
				w.requeue(draw(w, "task", w.seen.tasks))
				w.observe(other)
			})
		}
		c.add(1, "Redis is away", func() { w.link.away = true })
		c.add(1, "three days", func() { w.leap(maxAge + time.Second) })
	}
}

// settle ends a history: without faults, every live job ends, and every ended one is deleted with all that it has left.
func (w *world) settle() {
	w.fair, w.link.away = true, false
	if rapid.Bool().Draw(w.t, "all workers die") {
		for _, k := range w.workers {
			w.die(k)
		}
	}
	for round := 0; ; round++ {
		w.pause(1)
		w.rescuePass()
		w.drain()
		if len(w.seen.active) == 0 {
			break
		}
		if round == 30 {
			w.t.Fatalf("progress: %v never end: %+v", slices.Sorted(maps.Keys(w.seen.active)), w.seen.jobs)
		}
		w.pause(2)
	}
	w.sweep()
	w.leap(retention)
	for range 2 {
		w.pass(expire, 0, func() error { return w.scheduler.Expire(w.ctx) })
		for len(w.seen.purges) > 0 {
			w.purge(w.seen.purges[0].job)
		}
	}
	w.sweep()
	for _, job := range w.jobs {
		if state := w.seen.jobs[job.id].state(); state != gone {
			w.t.Fatalf("the end: %s is still %s", job.id[:1], state)
		}
	}
	if left := w.bucket(""); len(left) > 0 {
		w.t.Fatalf("the end: the bucket has %v", left)
	}
}

// drain lets the workers do all that is queued.
func (w *world) drain() {
	for {
		for _, k := range w.workers {
			for k.phase != idle {
				w.goOn(k)
			}
		}
		if len(w.seen.tasks) == 0 {
			return
		}
		w.accept(w.workers[0], w.seen.tasks[0], false)
	}
}
