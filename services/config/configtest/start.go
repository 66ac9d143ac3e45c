package configtest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"testing"
)

// Start runs a service, under the name that it logs, and returns the addresses of its two listeners when it has started.
// stop stops it and waits until it has returned.
func Start(
	t testing.TB, name string, run func(ctx context.Context, args, environ []string, stderr io.Writer) error, environ []string,
) (public, private string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, stderr := io.Pipe()
	stopped, drained := make(chan error, 1), make(chan struct{})
	go func() {
		stopped <- run(ctx, nil, environ, stderr)
		_ = stderr.Close() // never fails
	}()
	var ready struct{ Msg, Public, Private string }
	log := bufio.NewScanner(out)
	for ready.Msg != name+" has started" {
		if !log.Scan() {
			cancel()
			t.Fatalf("%s does not start: %v", name, <-stopped)
		}
		if err := json.Unmarshal(log.Bytes(), &ready); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, out) // until run has returned
	}()
	return ready.Public, ready.Private, func() {
		t.Helper()
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		<-drained
	}
}
