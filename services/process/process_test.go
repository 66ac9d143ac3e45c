package process

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const behavior = "SLUICE_PROCESS_TEST" // of the service

func TestMain(m *testing.M) {
	if how := os.Getenv(behavior); how != "" {
		serve(how)
	}
	os.Exit(m.Run())
}

// serve is the service that the tests start.
func serve(how string) {
	if how == "fails" {
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"no such setting"}`)
		os.Exit(3)
	}
	if how == "hangs" {
		select {}
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	for i := range 1000 {
		fmt.Fprintf(os.Stderr, `{"level":"DEBUG","msg":"number","i":%d}`+"\n", i)
	}
	fmt.Fprintln(os.Stderr, `{"level":"INFO","msg":"worker has started","private":"127.0.0.1:1","fence":2}`)
	fmt.Fprint(os.Stderr, `{"level":"WARN",`)
	fmt.Fprintln(os.Stderr, `"msg":"in two pieces"}`)
	fmt.Fprintln(os.Stderr, "panic: not JSON "+os.Getenv("MORE"))
	fmt.Fprintln(os.Stderr, `{"level":"INFO","msg":"last"}`)
	for range stop {
		if how == "stops" {
			os.Exit(0)
		}
	}
}

func start(t *testing.T, how string, options ...Option) *Process {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(path, []string{behavior + "=" + how, "MORE=more"}, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestAServiceThatStops(t *testing.T) {
	p := start(t, "stops")
	texts, err := p.Ready(t.Context())
	want := map[string]string{"level": "INFO", "msg": "worker has started", "private": "127.0.0.1:1"}
	if err != nil || !maps.Equal(texts, want) {
		t.Errorf("ready: %v (%v)", texts, err)
	}
	if p.PeakMemory() <= 0 || p.ExitCode() != -1 {
		t.Errorf("while it runs: a peak of %v MiB, exit code %d", p.PeakMemory(), p.ExitCode())
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Exited():
	default:
		t.Error("it has not exited after Stop")
	}
	if p.ExitCode() != 0 || p.PeakMemory() != 0 {
		t.Errorf("afterwards: exit code %d, a peak of %v MiB", p.ExitCode(), p.PeakMemory())
	}
	lines := p.Lines()
	if len(lines) != 1003 || lines[999]["i"] != 999.0 || lines[1002]["msg"] != "last" {
		t.Errorf("%d lines", len(lines))
	}
	if entry, found := p.Find(func(e map[string]any) bool { return e["i"] == 7.0 }); !found || entry["msg"] != "number" {
		t.Errorf("found %v", entry)
	}
	if _, found := p.Find(func(e map[string]any) bool { return e["i"] == -1.0 }); found {
		t.Error("found what is not there")
	}
	if got, want := p.Problems(), `{"level":"WARN","msg":"in two pieces"}`+"\npanic: not JSON more\n"; got != want {
		t.Errorf("problems: %q", got)
	}
	if strings.Count(p.Log(), "\n") != 1004 {
		t.Errorf("the log: %q", p.Log())
	}
	if _, err := p.Ready(t.Context()); err != nil {
		t.Errorf("it had started: %v", err)
	}
}

func TestObserve(t *testing.T) {
	var seen []string
	p := start(t, "stops", Observe(func(entry map[string]any) { seen = append(seen, fmt.Sprint(entry["msg"])) }))
	if _, err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	if len(seen) != 1003 || !slices.Equal(seen[999:], []string{"number", "worker has started", "in two pieces", "last"}) {
		t.Errorf("%d entries", len(seen))
	}
	if len(p.Lines()) != 0 || strings.Count(p.Problems(), "\n") != 2 {
		t.Errorf("%d entries are kept, problems %q", len(p.Lines()), p.Problems())
	}
	if log := p.Log(); strings.Count(log, "\n") != 50 || !strings.Contains(log, "worker has started") {
		t.Errorf("the log: %s", log)
	}
}

func TestAServiceThatDoesNotStart(t *testing.T) {
	p := start(t, "fails")
	if texts, err := p.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no such setting") {
		t.Errorf("%v, %v; want an error with its log", texts, err)
	}
	if p.ExitCode() != 3 {
		t.Errorf("exit code %d", p.ExitCode())
	}
	if _, err := Start("/does/not/exist", nil); err == nil {
		t.Error("a program that does not exist is started")
	}
}

func TestAServiceThatDoesNotStop(t *testing.T) {
	p := start(t, "stays")
	if _, err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Stop(time.Millisecond); err == nil {
		t.Error("no error")
	}
	select {
	case <-p.Exited():
	default:
		t.Error("it is not killed")
	}
}

func TestReadyEndsWithItsContext(t *testing.T) {
	p := start(t, "hangs")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Ready(ctx); err == nil {
		t.Error("no error")
	}
}
