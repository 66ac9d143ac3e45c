// Package child starts processes that end with this one.
package child

import (
	"bytes"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Start starts a command in a process group of its own, so that Ctrl-C does not reach it. The process gets the signal when
// this process ends for any reason. The channel is closed when the process has ended and its output has been read.
func Start(command *exec.Cmd, farewell syscall.Signal) (ended <-chan struct{}, err error) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid, command.SysProcAttr.Pdeathsig = true, farewell
	started, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		// The signal is sent when the thread ends that started the process. So this goroutine keeps its thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait() // callers read ProcessState
		}
	}()
	return gone, <-started
}

const (
	tailBytes = 16 << 10
	tailLines = 50
)

// Tail keeps the end of an output: its last 50 lines, at most 16 KiB.
type Tail struct {
	mu   sync.Mutex
	kept []byte
}

// Write appends to the output.
func (t *Tail) Write(output []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, output...)
	if drop := len(t.kept) - tailBytes; drop > tailBytes {
		t.kept = append([]byte(nil), t.kept[drop:]...)
	}
	return len(output), nil
}

// String returns the end of the output.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.kept[max(0, len(t.kept)-tailBytes):]
	lines := bytes.SplitAfter(kept, []byte{'\n'})
	return strings.ToValidUTF8(string(bytes.Join(lines[max(0, len(lines)-tailLines-1):], nil)), "")
}
