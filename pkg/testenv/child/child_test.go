package child

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const helper = "SLUICE_CHILD_TEST" // set in the process that TestAChildEndsWithItsParent kills

// A child outlives the thread of its caller, and ends with the process.
func TestAChildEndsWithItsParent(t *testing.T) {
	if os.Getenv(helper) != "" {
		startOnAThreadThatEnds()
		select {}
	}
	parent := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	parent.Env = append(os.Environ(), helper+"=1")
	input, err := parent.StdinPipe()
	must(t, err)
	defer input.Close() // ends the child in any case
	output, err := parent.StdoutPipe()
	must(t, err)
	must(t, parent.Start())
	lines := bufio.NewReader(output)
	if line, err := lines.ReadString('\n'); line != "the thread has ended\n" {
		t.Fatalf("%q (%v)", line, err)
	}
	_, err = io.WriteString(input, "hello\n")
	must(t, err)
	if line, err := lines.ReadString('\n'); line != "hello\n" {
		t.Fatalf("the child answers %q (%v)", line, err)
	}
	must(t, parent.Process.Kill())
	ended := make(chan error, 1)
	go func() {
		_, err := lines.ReadByte() // until the child has closed its output
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			t.Errorf("the child's output ends with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the child has outlived its parent")
	}
	_ = parent.Wait() // killed
}

// startOnAThreadThatEnds starts a child that copies its input to its output.
func startOnAThreadThatEnds() {
	thread := make(chan int)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			startOnAThreadThatEnds() // the first thread never ends
			select {}
		}
		command := exec.Command("cat")
		command.Stdin, command.Stdout = os.Stdin, os.Stdout
		if _, err := Start(command, syscall.SIGKILL); err != nil {
			panic(err)
		}
		thread <- syscall.Gettid()
	}()
	for task := fmt.Sprintf("/proc/self/task/%d", <-thread); ; runtime.Gosched() {
		if _, err := os.Stat(task); err != nil {
			fmt.Println("the thread has ended")
			return
		}
	}
}

func TestTail(t *testing.T) {
	var tail Tail
	for i := range 100_000 {
		fmt.Fprintf(&tail, "line %d\n", i)
	}
	lines := strings.Split(strings.TrimSpace(tail.String()), "\n")
	if len(lines) != tailLines || lines[0] != "line 99950" || lines[tailLines-1] != "line 99999" {
		t.Errorf("%d lines, %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	fmt.Fprint(&tail, strings.Repeat("x", 10*tailBytes))
	if got := len(tail.String()); got != tailBytes || cap(tail.kept) > 20*tailBytes {
		t.Errorf("%d bytes kept, %d shown, want %d", cap(tail.kept), got, tailBytes)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
