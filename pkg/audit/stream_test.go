package audit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// childFlag makes the test binary a process that logs to its standard output, one event for each byte on standard input.
const childFlag = "AUDIT_TEST_CHILD"

func TestChild(t *testing.T) {
	if os.Getenv(childFlag) == "" {
		if IsStdout("audit.ndjson") || !IsStdout("-") || !IsStdout("stdout") {
			t.Error("IsStdout is wrong")
		}
		return
	}
	cfg := config("stdout")
	l, err := Open(cfg)
	if err != nil {
		os.Exit(3)
	}
	var order [1]byte
	for {
		if _, err := os.Stdin.Read(order[:]); err != nil {
			break
		}
		answer := "recorded\n"
		if err := l.Record(download()); errors.Is(err, export.ErrUnavailable) && errors.Is(err, syscall.EPIPE) {
			answer = "refused\n"
		}
		if _, err := os.Stderr.WriteString(answer); err != nil {
			os.Exit(4)
		}
	}
	os.Exit(0)
}

// When the reader of standard output closes, Record fails; SIGPIPE must not kill the process.
func TestStdoutCloses(t *testing.T) {
	child := exec.Command(os.Args[0], "-test.run=^TestChild$")
	child.Env = append(os.Environ(), childFlag+"=1")
	stdin, err := child.StdinPipe()
	stdout, err2 := child.StdoutPipe()
	stderr, err3 := child.StderrPipe()
	must(t, errors.Join(err, err2, err3, child.Start()))
	ask := func() string {
		t.Helper()
		if _, err := stdin.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 9)
		n, err := io.ReadAtLeast(stderr, answer, 8)
		must(t, err)
		return strings.TrimSpace(string(answer[:n]))
	}
	if got := ask(); got != "recorded" {
		t.Errorf("with a reader: %s", got)
	}
	var log bytes.Buffer
	buffer := make([]byte, LineLimit)
	for bytes.Count(log.Bytes(), []byte{'\n'}) < 2 {
		n, err := stdout.Read(buffer)
		must(t, err)
		log.Write(buffer[:n])
	}
	must(t, stdout.Close())
	for range 2 {
		if got := ask(); got != "refused" {
			t.Errorf("without a reader: %s", got)
		}
	}
	if err := errors.Join(stdin.Close(), child.Wait()); err != nil {
		t.Error(err)
	}
	report, err := Verify(Proof{Key: testKey}, Input{"stdout", &log})
	if err != nil || report.Problem != nil || report.Lines != 2 {
		t.Errorf("%v, %+v", err, report)
	}
}

// streamLog is a log on a file that is treated like standard output.
func streamLog(t *testing.T, to *os.File) *Log {
	t.Helper()
	l := mustOpen(t, config(logFile(t)), openHandle)
	must(t, l.sink.close())
	l.sink, l.at = newStream(to), newChain()
	return l
}

// An incomplete line on a stream is ended, and a new chain begins.
func TestTornStream(t *testing.T) {
	path := logFile(t)
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	l := streamLog(t, to)
	mustRecord(t, l, download())
	if _, err := to.WriteString(resourceLineBegin); err != nil { // an interrupted write
		t.Fatal(err)
	}
	s, ok := l.sink.(*stream)
	if !ok {
		t.Fatalf("the sink is %T", l.sink)
	}
	s.torn = true
	mustRecord(t, l, download())
	mustClose(t, l)
	must(t, to.Close())
	lines := linesOf(content(t, path))
	if len(lines) != 5 {
		t.Fatalf("%d lines, want 5:\n%s", len(lines), content(t, path))
	}
	torn := string(lines[1])
	whole := bytes.Join([][]byte{lines[0], lines[2], lines[3], lines[4]}, nil)
	if torn != resourceLineBegin+"\n" {
		t.Errorf("the torn line is %q", torn)
	}
	report, err := Verify(Proof{Key: testKey}, Input{"stdout", bytes.NewReader(whole)})
	if err != nil || report.Problem != nil || len(report.Chains) != 2 || actionOf(t, lines[2]) != "repair" {
		t.Errorf("%v, %+v", err, report)
	}
	report, err = Verify(Proof{Key: testKey}, Input{"stdout", bytes.NewReader(content(t, path))})
	if err != nil || report.Problem == nil || report.Problem.Line != 2 {
		t.Errorf("the torn line was not reported: %v, %+v", err, report)
	}
}

func TestFullStream(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	l := streamLog(t, full)
	for range 2 {
		err := l.Record(download())
		unavailable(t, err)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("recorded with %v, want ENOSPC", err)
		}
	}
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("closed with %v, want ENOSPC", err)
	}
}
