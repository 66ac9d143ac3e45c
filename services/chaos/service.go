package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-fhir/sluice/services/process"
)

// service is a process of Sluice under one name. It may run, be killed, and run again.
type service struct {
	name, program string // worker-2, worker
	env           []string
	events        *events

	mu      sync.Mutex
	bin     string // folder of its program
	running *process.Process
	address string // of its private listener
}

// drain is how long a service may take to stop: a worker hands its units back after ten seconds.
const drain = 40 * time.Second

// start starts the service from the folder and returns when it listens. While a dependency is away that may take long:
// ctx bounds it.
func (s *service) start(ctx context.Context, bin string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return fmt.Errorf("%s runs already", s.name)
	}
	started, err := process.Start(filepath.Join(bin, s.program), slices.Clone(s.env),
		process.Observe(func(entry map[string]any) { s.events.note(s.name, entry) }))
	if err != nil {
		return err
	}
	s.running, s.bin = started, bin
	listens, err := started.Ready(ctx)
	if err != nil {
		s.running = nil
		started.Kill()
		return fmt.Errorf("%s: %w: %s", s.name, err, started.Problems())
	}
	s.address = listens["private"]
	go func() { // a service never ends by itself, whatever is away
		<-started.Exited()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.running == started {
			s.events.violated("%s has ended by itself: %s", s.name, started.Problems())
			s.running = nil
		}
	}()
	return nil
}

// restart starts a stopped service. A service that exits because a dependency is away is started again, as a supervisor
// does.
func (s *service) restart(ctx context.Context, bin string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := s.start(ctx, bin)
		if err == nil {
			return nil
		}
		if pause(ctx, time.Second) != nil {
			return err
		}
	}
}

// kill sends SIGKILL.
func (s *service) kill() {
	if running := s.take(); running != nil {
		running.Kill()
	}
}

// stop sends SIGTERM and waits. An error means that it had to be killed.
func (s *service) stop() error {
	if running := s.take(); running != nil {
		return running.Stop(drain)
	}
	return nil
}

// place returns the process and the address of its private listener.
func (s *service) place() (pid int, private string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return 0, "", fmt.Errorf("%s does not run", s.name)
	}
	return s.running.Pid(), s.address, nil
}

func (s *service) take() *process.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := s.running
	s.running = nil
	return running
}

func (s *service) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		s.running.Signal(sig)
	}
}

// named returns the services whose name begins so.
func (s *system) named(prefix string) []*service {
	var found []*service
	for _, each := range s.services {
		if strings.HasPrefix(each.name, prefix) {
			found = append(found, each)
		}
	}
	return found
}
