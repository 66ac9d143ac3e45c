// Package servers runs a Redis, a MinIO or a PostgreSQL as processes that the caller may kill, stop, empty and fail over.
// Each server listens on a port of 127.0.0.1 below the ephemeral range, which it keeps over Kill and Start. It ends with
// the process that started it, also if that is killed; then its data stays.
package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv/child"
)

const (
	startLimit = 2 * time.Minute // for a server to answer, on a busy machine
	askLimit   = 10 * time.Second
)

// server is the process of one server. Methods that change it may not be called concurrently; Log, Running, Pid and the
// addresses may be read at any time.
type server struct {
	name    string
	dir     string
	port    int
	killing syscall.Signal              // ends it at once
	account *syscall.Credential         // nil: the caller's
	command func(port int) *exec.Cmd    // starts it
	answers func(context.Context) error // nil when the server is ready

	output child.Tail
	paused []int // processes
	closed bool

	mu      sync.Mutex
	running *exec.Cmd
	ended   <-chan struct{} // closed when running has ended
}

// prepare creates the folder of a new server. An existing one has to be empty, because Close removes it.
func (s *server) prepare() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	content, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		return fmt.Errorf("the folder of a new %s is not empty: %s", s.name, s.dir)
	}
	s.dir, err = filepath.Abs(s.dir)
	if err != nil || s.account == nil {
		return err
	}
	return os.Chown(s.dir, int(s.account.Uid), int(s.account.Gid))
}

// file is a file that a server needs in its folder.
type file struct {
	name    string
	content []byte
}

// write creates files in the server's folder, readable by its account alone.
func (s *server) write(files ...file) error {
	for _, f := range files {
		path := filepath.Join(s.dir, f.name)
		if err := os.WriteFile(path, f.content, 0o600); err != nil {
			return err
		}
		if s.account != nil {
			if err := os.Chown(path, int(s.account.Uid), int(s.account.Gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin starts the server for the first time, on a port that it finds. After an error nothing is left.
func (s *server) begin(ctx context.Context) error {
	var err error
	for range 3 { // another process may take the port first
		if s.port, err = FreePort(ctx); err != nil {
			break
		}
		if err = s.Start(ctx); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// Start starts the killed server again, on the same port and the same data, and returns when it answers. After an error it
// does not run.
func (s *server) Start(ctx context.Context) error {
	if s.closed {
		return fmt.Errorf("%s is closed", s.name)
	}
	if s.Running() {
		return fmt.Errorf("%s is already running", s.name)
	}
	command := s.command(s.port)
	command.Dir, command.Stdout, command.Stderr = s.dir, &s.output, &s.output
	if s.account != nil {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	}
	ended, err := child.Start(command, s.killing)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.running, s.ended = command, ended
	s.mu.Unlock()
	if err := s.await(ctx, "answer", s.answers); err != nil {
		return errors.Join(err, s.end())
	}
	return nil
}

// await asks the running server until there is no error.
func (s *server) await(ctx context.Context, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	var err error
	for {
		select {
		case <-s.ended:
			return fmt.Errorf("%s has ended; its output:\n%s", s.name, s.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s does not %s: %w; its output:\n%s", s.name, what, errors.Join(ctx.Err(), err), s.Log())
		case <-again.C:
		}
		asked, cancel := context.WithTimeout(ctx, askLimit)
		err = ask(asked)
		cancel()
		if err == nil && s.Running() {
			return nil
		}
	}
}

// Kill ends the running server as a crash does and returns when it is gone. Its data stays.
func (s *server) Kill() error {
	if !s.Running() {
		return fmt.Errorf("%s is not running", s.name)
	}
	return s.end()
}

func (s *server) end() error {
	if !s.Running() {
		return nil
	}
	if s.killing == syscall.SIGKILL {
		if err := ignoreGone(syscall.Kill(-s.Pid(), syscall.SIGKILL)); err != nil { // with its children
			return fmt.Errorf("kill %s: %w", s.name, err)
		}
	} else {
		err := ignoreGone(s.running.Process.Signal(s.killing))
		if err := errors.Join(err, s.Resume()); err != nil { // a paused process cannot handle the signal
			return fmt.Errorf("kill %s: %w", s.name, err)
		}
	}
	<-s.ended
	s.paused = nil
	return nil
}

// Pause stops the server and its children, so that it keeps its connections and does not answer.
func (s *server) Pause() error {
	if !s.Running() {
		return fmt.Errorf("%s is not running", s.name)
	}
	// A stopped process starts no further children and does not collect ended ones, so their numbers stay theirs.
	s.paused = []int{s.Pid()}
	for i := 0; i < len(s.paused); i++ {
		if err := ignoreGone(syscall.Kill(s.paused[i], syscall.SIGSTOP)); err != nil {
			return errors.Join(fmt.Errorf("pause %s: %w", s.name, err), s.Resume())
		}
		children, err := childrenOf(s.paused[i])
		if err != nil {
			return errors.Join(fmt.Errorf("pause %s: %w", s.name, err), s.Resume())
		}
		s.paused = append(s.paused, children...)
	}
	return nil
}

// Resume lets the paused server run on.
func (s *server) Resume() error {
	var errs []error
	for _, pid := range slices.Backward(s.paused) { // the server last: only it collects its children
		errs = append(errs, ignoreGone(syscall.Kill(pid, syscall.SIGCONT)))
	}
	s.paused = nil
	return errors.Join(errs...)
}

// Close ends the server and removes its data. Further calls do nothing.
func (s *server) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.end(), os.RemoveAll(s.dir))
}

// Log returns the end of what the server has logged, over all its starts: at most 50 lines and 16 KiB.
func (s *server) Log() string { return s.output.String() }

// Running returns whether the server's process exists. It may be paused.
func (s *server) Running() bool { return s.Pid() != 0 }

// Pid returns the number of the server's process, 0 if it does not run.
func (s *server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return 0
	}
	select {
	case <-s.ended:
		return 0
	default:
		return s.running.Process.Pid
	}
}

// Addr returns the server's address, host:port.
func (s *server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// childrenOf returns the children of a process, including ended ones that it has not collected.
func childrenOf(parent int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// The name of the program, in brackets, may contain anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// FreePort returns a free port below the ephemeral range, so that no connection takes it while the server is down.
func FreePort(ctx context.Context) (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue // taken
		}
		return port, listener.Close()
	}
	return 0, errors.New("no free port")
}

// program returns the path of a program that scripts/servers.sh has found, by the variable that it sets.
func program(variable string, below ...string) (string, error) {
	path := os.Getenv(variable)
	if path == "" {
		return "", fmt.Errorf("%s is not set: scripts/servers.sh sets it", variable)
	}
	return filepath.Join(append([]string{path}, below...)...), nil
}
