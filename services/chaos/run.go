package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// run is one run. The error tells what did not hold.
func run(ctx context.Context, opts options, out io.Writer) (err error) {
	those, err := chosen(opts.only)
	if err != nil {
		return err
	}
	if opts.patients < 20 {
		return errors.New("at least 20 patients are required")
	}
	dir, err := os.MkdirTemp("", "sluice-chaos-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // PostgreSQL runs as another account
		return err
	}
	log := newEvents(out, opts.keep)
	log.say("seed %d", opts.seed)
	data := filepath.Join(dir, "data")
	if err := generate(ctx, data, opts.patients); err != nil {
		return err
	}
	known, few, err := learn(data)
	if err != nil {
		return err
	}
	s, err := begin(ctx, opts, dir, data, few, log)
	if err != nil {
		return err
	}
	defer s.end()
	if opts.soak == "" && slices.ContainsFunc(those, func(f *fault) bool { return strings.HasPrefix(f.name, "clock-") }) {
		log.say("building services with wrong clocks")
		if err := s.buildSkewed(ctx); err != nil {
			return err
		}
	}
	return s.suite(ctx, those, known)
}

// suite runs the clients, the loads and the faults, and checks what is left.
func (s *system) suite(ctx context.Context, those []*fault, known *truth) error {
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	s.front.ready = make([]bool, len(s.front.replicas))
	go s.front.watch(watching)
	probe, err := s.newClient("probe", 0, known)
	if err != nil {
		return err
	}
	if err := probe.probe(ctx); err != nil {
		return err
	}
	before, err := s.measure(ctx)
	if err != nil {
		return err
	}
	s.events.say("ready")

	var visitors []*client
	for i, id := range []string{"app-1", "app-2", "app-3", "app-1", "few", "ten"} {
		visitor, err := s.newClient(id, i+1, known)
		if err != nil {
			return err
		}
		visitors = append(visitors, visitor)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	closing := make(chan struct{})
	group, visiting := errgroup.WithContext(running)
	for _, visitor := range visitors {
		group.Go(func() error { visitor.run(visiting, closing); return nil })
	}
	group.Go(func() error { return s.loads(visiting, closing, known) })
	var recovered []recovery
	if s.opts.soak == "" {
		recovered, err = s.storm(visiting, those, probe)
	} else {
		err = s.soak(visiting)
	}
	if err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}
	s.events.say("the last visits end")
	close(closing)
	if err := group.Wait(); err != nil {
		return err
	}
	s.events.say("waiting until all jobs have ended and expired")
	if err := s.check(ctx, before); err != nil {
		return err
	}
	return s.events.report(recovered)
}

// loads loads new versions of some resources again and again.
func (s *system) loads(ctx context.Context, done <-chan struct{}, known *truth) error {
	choose := rand.New(rand.NewPCG(s.opts.seed, 16)) //nolint:gosec // it must be reproducible
	for n := 0; ; n++ {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(5+choose.IntN(10)) * time.Second):
		}
		s.loading.Lock()
		dir := filepath.Join(s.dir, fmt.Sprint("load-", n))
		err := known.change(choose, dir)
		if err == nil {
			err = s.load(ctx, dir)
		}
		s.loading.Unlock()
		if err == nil {
			known.loaded()
			s.events.visited("loaded")
		} else if ctx.Err() == nil {
			return fmt.Errorf("load: %w", err)
		}
	}
}
