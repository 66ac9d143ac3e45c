package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// fault is one kind of thing that breaks.
type fault struct {
	of    string // the kind of thing that breaks
	name  string
	lasts time.Duration
	loses bool // jobs may be gone afterwards: Redis has lost data
	fails bool // units may use up their attempts: the error is one of the dependency, not an outage
	deaf  bool // workers may be taken for lost
	early bool // jobs may seem to have expired
	alone bool // no other fault comes at the same time: applying it needs all servers
	apply breaker
}

// breaker breaks something, and returns what mends it, which is called once, also after an error if it is not nil.
type breaker func(ctx context.Context, s *system, choose *rand.Rand) (mend func(context.Context) error, err error)

// faults are all kinds, by the thing that breaks.
var faults = slices.Concat(of("process", processFaults), of("Redis", redisFaults), of("store", storeFaults),
	of("PostgreSQL", postgresFaults), of("link", linkFaults))

func of(thing string, those []fault) []fault {
	for i := range those {
		those[i].of = thing
	}
	return those
}

var processFaults = []fault{
	{name: "worker-killed", deaf: true, apply: killed("worker", 1)},
	{name: "workers-killed", deaf: true, apply: killed("worker", 3)},
	{name: "api-killed", apply: killed("api", 1)},
	{name: "scheduler-killed", apply: killed("scheduler", 1)},
	{name: "schedulers-away", lasts: 10 * time.Second, apply: killed("scheduler", 2)},
	{name: "auth-killed", apply: killed("auth", 1)},
	{name: "auth-away", lasts: 10 * time.Second, apply: killed("auth", 1)},
	{name: "everything-killed", deaf: true, apply: killed("", 8)},
	{name: "worker-stopped", deaf: true, lasts: 60 * time.Second, apply: suspended},
	{name: "rolling-restart", alone: true, apply: rollingRestart},
	{name: "clock-ahead", early: true, alone: true, lasts: 30 * time.Second, apply: skewed(ahead)},
	{name: "clock-behind", alone: true, lasts: 30 * time.Second, apply: skewed(behind)},
	{name: "tasks-repeated", alone: true, apply: tasksRepeated},
}

// killed kills some services of a kind. They start again when the fault is mended.
func killed(kind string, many int) breaker {
	return func(_ context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
		victims := s.named(kind)
		choose.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		victims = victims[:many]
		for _, victim := range victims {
			victim.kill()
		}
		return func(ctx context.Context) error { return s.restart(ctx, victims, s.opts.bin) }, nil
	}
}

// restart starts stopped services at once.
func (s *system) restart(ctx context.Context, those []*service, bin string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, each := range those {
		group.Go(func() error { return each.restart(ctx, bin) })
	}
	return group.Wait()
}

// suspended stops a worker in the middle of what it does. When it continues, others have its units.
func suspended(_ context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	workers := s.named("worker")
	victim := workers[choose.IntN(len(workers))]
	victim.signal(syscall.SIGSTOP)
	return func(context.Context) error { victim.signal(syscall.SIGCONT); return nil }, nil
}

// rollingRestart stops and starts one service after the other, as an upgrade does.
func rollingRestart(ctx context.Context, s *system, _ *rand.Rand) (func(context.Context) error, error) {
	for _, each := range s.services {
		if err := each.stop(); err != nil {
			return nil, fmt.Errorf("%s: %w", each.name, err)
		}
		if err := each.restart(ctx, s.opts.bin); err != nil {
			return nil, err
		}
	}
	return nothing, nil
}

func nothing(context.Context) error { return nil }

// skewed runs a service with a wrong clock.
func skewed(way string) breaker {
	return func(ctx context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
		victim := s.services[choose.IntN(len(s.services))]
		change := func(ctx context.Context, bin string) error {
			if err := victim.stop(); err != nil {
				return fmt.Errorf("%s: %w", victim.name, err)
			}
			return victim.restart(ctx, bin)
		}
		s.events.say("%s runs with a clock 10 minutes %s", victim.name, way)
		mend := func(ctx context.Context) error { return change(ctx, s.opts.bin) }
		return mend, change(ctx, s.skewedBin(way))
	}
}

// tasksRepeated enqueues tasks of units again, most of which are long done: some now, some late.
func tasksRepeated(ctx context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	client, err := queue.Open(s.redis.URL())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	s.events.mu.Lock()
	seen := append([]unitSeen{}, s.events.units...)
	s.events.mu.Unlock()
	for _, unit := range seen {
		job, err := export.ParseJobID(unit.job)
		if err != nil {
			return nil, err
		}
		task := queue.Task{
			Kind: export.Kind(unit.kind), Job: job, Unit: export.UnitID(unit.unit), Fence: int64(1 + choose.IntN(2)),
			Short: choose.IntN(2) == 0, Delay: time.Duration(choose.IntN(2)*choose.IntN(30)) * time.Second,
		}
		if err := client.EnqueueUnit(ctx, task); err != nil && !errors.Is(err, queue.ErrTaken) {
			return nil, err
		}
	}
	return nothing, nil
}
