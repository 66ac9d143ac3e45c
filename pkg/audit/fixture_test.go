package audit

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

var (
	testKey   = []byte("0123456789abcdef0123456789abcdef")
	someJob   = export.JobID(strings.Repeat("a", 26))
	someOwner = export.Owner{Issuer: "https://login.example.org", Subject: "research-team"}
)

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noon is a fixed clock.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, int(7*time.Millisecond), time.UTC) }

// download is an event with many fields.
func download() Event {
	return Event{
		Action: File, Outcome: Success, Agent: someOwner, Address: netip.MustParseAddr("192.0.2.7"), Job: someJob,
		File: "Patient.e1.1.0.ndjson", Range: Range{Start: 100, Length: 50}, Bytes: 50, HTTPStatus: 206, RequestID: "R1",
	}
}

func config(path string) Config {
	return Config{Path: path, Process: "api", Site: "host-1", Key: testKey, Now: noon}
}

func mustOpen(t testing.TB, cfg Config, handles opener) *Log {
	t.Helper()
	l, err := open(cfg, handles)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // a second time, unless the test failed
	return l
}

func mustRecord(t testing.TB, l *Log, events ...Event) {
	t.Helper()
	for _, e := range events {
		must(t, l.Record(e))
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	must(t, l.Close())
}

// unavailable checks that Record refused an event.
func unavailable(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("recorded with %v, want export.ErrUnavailable", err)
	}
}

func content(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return text
}

// linesOf returns the lines with their line breaks.
func linesOf(text []byte) [][]byte {
	lines := bytes.SplitAfter(text, []byte{'\n'})
	return lines[:len(lines)-1]
}

// verified checks that the files are one valid log and returns the action of each line.
func verified(t *testing.T, files ...string) (actions []string, report Report) {
	t.Helper()
	var inputs []Input
	for _, file := range files {
		text := content(t, file)
		inputs = append(inputs, Input{file, bytes.NewReader(text)})
		for _, line := range linesOf(text) {
			actions = append(actions, actionOf(t, line))
		}
	}
	report, err := Verify(Proof{Key: testKey}, inputs...)
	if err != nil || report.Problem != nil {
		t.Fatalf("%v, %+v\n%s", err, report.Problem, content(t, files[len(files)-1]))
	}
	if report.Lines != int64(len(actions)) {
		t.Fatalf("%d lines verified, want %d", report.Lines, len(actions))
	}
	return actions, report
}

func actionOf(t testing.TB, line []byte) string {
	t.Helper()
	_, rest, found := bytes.Cut(line, []byte(`"subtype":[{"system":"urn:sluice:audit:action","code":"`))
	action, _, ended := bytes.Cut(rest, []byte{'"'})
	if !found || !ended {
		t.Fatalf("no action in %s", line)
	}
	return string(action)
}

// want compares the actions of lines.
func want(t *testing.T, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("the log holds %q, want %q", strings.Join(got, " "), want)
	}
}

func logFile(t testing.TB) string { return filepath.Join(t.TempDir(), "audit.ndjson") }

// faulty is a real file with injected faults.
type faulty struct {
	handle
	mu          sync.Mutex
	short       int   // bytes that the next write writes before it fails; -1: no fault
	noCut       bool  // Truncate fails
	syncError   error // returned by the next Sync
	beforeSync  func()
	writes      int
	syncs, cuts int
}

var errDisk = errors.New("no space left on device")

func (f *faulty) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	if f.short < 0 {
		return f.handle.Write(p)
	}
	n, err := f.handle.Write(p[:min(f.short, len(p))])
	f.short = -1
	return n, errors.Join(err, errDisk)
}

func (f *faulty) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cuts++
	if f.noCut {
		return errDisk
	}
	return f.handle.Truncate(size)
}

func (f *faulty) Sync() error {
	f.mu.Lock()
	hook, fault := f.beforeSync, f.syncError
	f.syncs++
	f.syncError = nil
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
	if fault != nil {
		return fault
	}
	return f.handle.Sync()
}

func (f *faulty) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// withFaults opens files as disk.
func withFaults(disk *faulty) opener {
	return func(path string) (handle, error) {
		opened, err := openHandle(path)
		disk.handle, disk.short = opened, -1
		return disk, err
	}
}
