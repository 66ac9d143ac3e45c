// Command testreport reads the events of `go test -json` and prints what a person needs of them: go's own line for
// each package, the whole output of what failed or was skipped, and a last line of totals. It exits 1 when a test
// failed or was skipped, when a package failed without one (it did not build, or its process died), and when nothing
// passed: tests that did not run say nothing.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	ok, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is one line of `go test -json`; `go doc test2json` says what is in it.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output
	Test       string // empty for the package's own events
	Output     string
}

// test names a test in all packages.
type test struct{ pkg, name string }

// tally is what has been seen so far.
type tally struct {
	out    io.Writer
	held   map[test][]string // output of what has not ended; name "" holds the package's own
	passed int
	failed []test
	skip   []test
	broken []string // packages that failed
}

// report copies what matters from events to out and returns whether all is well.
func report(events io.Reader, out io.Writer) (bool, error) {
	buffered := bufio.NewWriter(out)
	t := &tally{out: buffered, held: map[test][]string{}}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			t.take(line)
			if flushErr := buffered.Flush(); flushErr != nil {
				return false, fmt.Errorf("write the report: %w", flushErr)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false, fmt.Errorf("read the events: %w", err)
		}
	}
	ok := t.total()
	if err := buffered.Flush(); err != nil {
		return false, fmt.Errorf("write the report: %w", err)
	}
	return ok, nil
}

// take notes one line of the events. A line that is no event is somebody's plain output and goes through.
func (t *tally) take(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		t.print(string(line))
		return
	}
	key := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		t.print(e.Output)
	case "output":
		t.held[key] = append(t.held[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			t.endTest(e.Action, key)
		} else {
			t.endPackage(e.Action, e.Package)
		}
	}
}

func (t *tally) endTest(action string, key test) {
	switch action {
	case "pass":
		t.passed++
	case "fail":
		t.failed = append(t.failed, key)
		t.print(t.held[key]...)
	case "skip":
		t.skip = append(t.skip, key)
		t.print(t.held[key]...)
	}
	delete(t.held, key)
}

// endPackage prints a package's verdict. When it failed, everything that it still holds is printed too: the tests
// that were running when its process died never ended.
func (t *tally) endPackage(action, pkg string) {
	var left []test
	for key := range t.held {
		if key.pkg == pkg {
			left = append(left, key)
		}
	}
	slices.SortFunc(left, func(a, b test) int { return strings.Compare(b.name, a.name) }) // the package's own last
	if action == "fail" {
		t.broken = append(t.broken, pkg)
	}
	for _, key := range left {
		for _, line := range t.held[key] {
			verdict := strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "? ") ||
				strings.HasPrefix(line, "\t") && strings.Contains(line, "coverage:")
			if action == "fail" || key.name == "" && verdict {
				t.print(line)
			}
		}
		delete(t.held, key)
	}
}

// total prints the last lines and returns whether all is well.
func (t *tally) total() bool {
	for _, key := range t.failed {
		t.print(fmt.Sprintf("failed: %s %s\n", key.pkg, key.name))
	}
	for _, key := range t.skip {
		t.print(fmt.Sprintf("skipped, which is no answer: %s %s\n", key.pkg, key.name))
	}
	for _, pkg := range t.broken {
		if !slices.ContainsFunc(t.failed, func(key test) bool { return key.pkg == pkg }) {
			t.print(fmt.Sprintf("failed without a failing test: %s\n", pkg))
		}
	}
	for key := range t.held { // the events stopped in the middle of a package
		t.print(fmt.Sprintf("never ended: %s %s\n", key.pkg, key.name))
	}
	t.print(fmt.Sprintf("%d passed, %d failed, %d skipped\n", t.passed, len(t.failed), len(t.skip)))
	return t.passed > 0 && len(t.failed) == 0 && len(t.skip) == 0 && len(t.broken) == 0 && len(t.held) == 0
}

// print writes to the buffered report, which keeps its first error for Flush.
func (t *tally) print(lines ...string) {
	for _, line := range lines {
		_, _ = io.WriteString(t.out, line)
	}
}
