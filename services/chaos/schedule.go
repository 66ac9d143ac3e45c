package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// chosen returns the faults that a run has, in the order of their list.
func chosen(only []string) ([]*fault, error) {
	var those []*fault
	for i := range faults {
		if len(only) == 0 || slices.Contains(only, faults[i].name) {
			those = append(those, &faults[i])
		}
	}
	for _, name := range only {
		if !slices.ContainsFunc(those, func(f *fault) bool { return f.name == name }) {
			return nil, fmt.Errorf("there is no fault %q", name)
		}
	}
	return those, nil
}

// longest is the longest recovery: a lost worker is found after 20 s.
const longest = 40 * time.Second

// recovery is how long the system took after a fault until a small export and all jobs of before were done.
type recovery struct {
	what string
	took time.Duration
}

// storm applies one fault after the other until the time is over, and sometimes two at once. Each comes once before any
// comes again. Without a time each comes once.
func (s *system) storm(ctx context.Context, those []*fault, probe *client) (recovered []recovery, err error) {
	choose := rand.New(rand.NewPCG(s.opts.seed, 15)) //nolint:gosec // it must be reproducible
	over := time.Now().Add(s.opts.lasts)
	for {
		order := slices.Clone(those)
		choose.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for len(order) > 0 {
			if s.opts.lasts > 0 && time.Now().After(over) {
				return recovered, nil
			}
			next := order[:1]
			if len(order) > 1 && choose.IntN(4) == 0 && together(order[0], order[1]) {
				next = order[:2]
			}
			order = order[len(next):]
			r, err := s.suffer(ctx, len(recovered)+1, next, probe)
			if err != nil {
				return recovered, fmt.Errorf("%s: %w", names(next), err)
			}
			recovered = append(recovered, r)
			if err := pause(ctx, time.Duration(500+choose.IntN(3000))*time.Millisecond); err != nil {
				return recovered, err
			}
		}
		if s.opts.lasts == 0 {
			return recovered, nil
		}
	}
}

// together reports whether the faults may come at once. Those of one thing could not be mended apart.
func together(one, other *fault) bool { return !one.alone && !other.alone && one.of != other.of }

func names(those []*fault) string {
	var all []string
	for _, f := range those {
		all = append(all, f.name)
	}
	return strings.Join(all, " and ")
}

// suffer applies faults at once, mends them, and measures the recovery. What it chooses depends on the seed and its number
// only.
func (s *system) suffer(ctx context.Context, number int, those []*fault, probe *client) (recovery, error) {
	s.events.say("%d: %s", number, names(those))
	s.events.begin(those)
	choose := rand.New(rand.NewPCG(s.opts.seed, uint64(number))) //nolint:gosec // it must be reproducible
	var mends []func(context.Context) error
	var lasts time.Duration
	var err error
	for _, f := range those {
		mend, failed := f.apply(ctx, s, choose)
		if mend != nil {
			mends = append(mends, mend)
		}
		if err = failed; err != nil {
			break
		}
		lasts = max(lasts, f.lasts)
	}
	if err == nil {
		err = pause(ctx, lasts)
	}
	mended := time.Now()
	// Mended also if the run ends early: locks are held, and services are stopped.
	mending, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	var group errgroup.Group // at once: a service may not start without the server that is away
	for _, mend := range mends {
		group.Go(func() error { return mend(mending) })
	}
	if err := errors.Join(err, group.Wait()); err != nil {
		return recovery{}, err
	}
	if err := probe.probe(ctx); err != nil {
		return recovery{}, err
	}
	if err := s.settled(ctx, mended); err != nil {
		return recovery{}, err
	}
	took := time.Since(mended)
	outcomes := s.events.end(len(those))
	if took > longest && s.opts.silence == 0 { // a test asserts no times
		s.events.violated("%s: recovered after %.1f s", names(those), took.Seconds())
	}
	s.events.say("%s: recovered after %.1f s; units: %s", names(those), took.Seconds(), counts(outcomes))
	if len(those) > 1 {
		return recovery{"two at once", took}, nil
	}
	return recovery{those[0].name, took}, nil
}

// settled waits until the jobs that were created before the instant have ended. Jobs with an unconfirmed kick-off do not
// count: no client waits for them, and a rescue removes them after a minute.
func (s *system) settled(ctx context.Context, before time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	jobs, err := jobstore.Open(s.redis.URL(), nil)
	if err != nil {
		return err
	}
	defer jobs.Close()
	for {
		live, err := liveSince(ctx, jobs, before)
		if err == nil && len(live) == 0 {
			return nil
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("jobs %v are live %v after the fault: %w", live, patience, errors.Join(err, ctx.Err()))
		}
	}
}

func liveSince(ctx context.Context, jobs *jobstore.Store, before time.Time) (live []export.JobID, err error) {
	const many = 1000
	active, err := jobs.Active(ctx, 0, many)
	for _, entry := range active {
		if entry.At.After(before) {
			continue
		}
		job, err := jobs.Job(ctx, entry.ID)
		switch {
		case errors.Is(err, export.ErrNotFound):
		case err != nil:
			return nil, err
		case job.State.Live() && !job.Unconfirmed:
			live = append(live, job.ID)
		}
	}
	return live, err
}

func counts(of map[string]int) string {
	var parts []string
	for name, n := range of {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// probe exports a little, and tries at once again whatever happens.
func (c *client) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	q := c.truth.of(c.id)[0]
	for {
		err := c.probeOnce(ctx, q)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errGone):
			if _, err := c.gone(err); err != nil {
				return err
			}
		case errors.Is(err, errFailed) && !c.events.excused(time.Now().Add(-aftermath)):
			return err
		}
		if pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("no recovery within %v: %w", patience, err)
		}
	}
}

func (c *client) probeOnce(ctx context.Context, q *question) error {
	kickingOff, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	job, err := c.kickOff(kickingOff, q)
	if err != nil {
		return err
	}
	for {
		polling, cancel := context.WithTimeout(ctx, 5*time.Second)
		manifest, _, err := c.bulk.Poll(polling, job, 1)
		cancel()
		if manifest != nil {
			if len(manifest.Output) != 1 || len(manifest.Error) > 0 && !c.events.excused(time.Now().Add(-aftermath)) {
				return fmt.Errorf("%w: the manifest of a small export has %d files and %d of errors",
					errFailed, len(manifest.Output), len(manifest.Error))
			}
			return nil
		}
		if err = classify(err); errors.Is(err, errGone) || errors.Is(err, errFailed) {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
