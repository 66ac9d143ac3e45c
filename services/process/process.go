// Package process runs a service as a process and follows its log.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// Process is a service. It is killed when this process ends. All methods may be called at any time.
type Process struct {
	command *exec.Cmd
	exited  <-chan struct{}
	started chan struct{} // closed when addresses is set
	observe func(entry map[string]any)

	mu        sync.Mutex
	entries   []map[string]any
	output    text
	problems  text
	addresses map[string]string
}

// text collects lines.
type text interface {
	io.Writer
	fmt.Stringer
}

// Option changes what Start does.
type Option func(*Process)

// Observe calls a function with each entry of the log instead of keeping all of them, for processes that run for long: Log
// and Problems only return the last lines, Lines and Find nothing. The calls come in the order of the log, and the service
// waits for them when it logs much.
func Observe(observe func(entry map[string]any)) Option {
	return func(p *Process) { p.observe, p.output, p.problems = observe, &child.Tail{}, &child.Tail{} }
}

// Start starts the program with these variables, and PATH and TMPDIR of this process unless env has them.
func Start(path string, env []string, options ...Option) (*Process, error) {
	p := &Process{started: make(chan struct{}), output: &bytes.Buffer{}, problems: &bytes.Buffer{}}
	for _, option := range options {
		option(p)
	}
	p.command = &exec.Cmd{Path: path, Args: []string{path}} // its life has no context
	p.command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	p.command.Stderr = &lines{take: p.take}
	var err error
	if p.exited, err = child.Start(p.command, syscall.SIGKILL); err != nil {
		return nil, err
	}
	return p, nil
}

// lines calls take with each line that is written to it.
type lines struct {
	take func(line []byte)
	rest []byte // of the last line
}

const longestLine = 1 << 20 // bytes; a longer one is cut

func (l *lines) Write(output []byte) (int, error) {
	l.rest = append(l.rest, output...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte{'\n'})
		if !found && len(line) < longestLine {
			return len(output), nil
		}
		l.take(line)
		l.rest = rest
	}
}

// take handles a line of the log.
func (p *Process) take(line []byte) {
	var entry map[string]any
	isEntry := json.Unmarshal(line, &entry) == nil
	p.note(line, entry)
	if isEntry && p.observe != nil {
		p.observe(entry)
	}
}

func (p *Process) note(line []byte, entry map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.output, "%s\n", line)
	if level := entry["level"]; level != "INFO" && level != "DEBUG" { // or a line of a panic
		_, _ = fmt.Fprintf(p.problems, "%s\n", line)
	}
	if entry != nil && p.observe == nil {
		p.entries = append(p.entries, entry)
	}
	if msg, _ := entry["msg"].(string); p.addresses == nil && strings.HasSuffix(msg, " has started") {
		p.addresses = map[string]string{}
		for key, value := range entry {
			if text, isText := value.(string); isText {
				p.addresses[key] = text
			}
		}
		close(p.started)
	}
}

// Name returns the name of the program.
func (p *Process) Name() string { return filepath.Base(p.command.Path) }

// Pid returns the number of the process.
func (p *Process) Pid() int { return p.command.Process.Pid }

// Ready waits until the service listens, and returns the texts of the log entry that reports it, such as "public" and
// "private", which are addresses.
func (p *Process) Ready(ctx context.Context) (map[string]string, error) {
	select {
	case <-p.started:
	case <-p.exited:
	case <-ctx.Done():
		return nil, fmt.Errorf("%s has not started: %w; its log:\n%s", p.Name(), ctx.Err(), p.Log())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.addresses == nil {
		return nil, fmt.Errorf("%s has ended before it started; its log:\n%s", p.Name(), p.output)
	}
	return p.addresses, nil
}

// Find returns the first entry of the log that matches.
func (p *Process) Find(match func(entry map[string]any) bool) (map[string]any, bool) {
	entries := p.Lines()
	if i := slices.IndexFunc(entries, match); i >= 0 {
		return entries[i], true
	}
	return nil, false
}

// Lines returns the entries of the log so far. Callers may not change them.
func (p *Process) Lines() []map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clip(p.entries)
}

// Log returns the log so far, as text.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// Problems returns the lines of the log that are neither at level INFO nor DEBUG.
func (p *Process) Problems() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problems.String()
}

// Signal sends a signal if the process has not ended.
func (p *Process) Signal(signal syscall.Signal) { _ = p.command.Process.Signal(signal) }

// Stop sends SIGTERM and waits until the process has ended. After the given time it kills the process and returns an error.
func (p *Process) Stop(within time.Duration) error {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(within):
		p.Kill()
		return fmt.Errorf("%s did not stop within %v", p.Name(), within)
	}
}

// Kill sends SIGKILL, as if the machine were lost, and waits until the process has ended.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.exited
}

// Exited is closed when the process has ended and its log is complete.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode returns the exit code of an ended process, -1 if a signal has ended it or it runs.
func (p *Process) ExitCode() int {
	select {
	case <-p.exited:
		return p.command.ProcessState.ExitCode()
	default:
		return -1
	}
}

// PeakMemory returns the peak of the resident set in MiB, 0 if the system does not report it or the process has ended.
func (p *Process) PeakMemory() float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if text, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 64)
			if err == nil {
				return kib / 1024
			}
		}
	}
	return 0
}
