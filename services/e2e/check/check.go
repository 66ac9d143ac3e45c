// Package check has what all end-to-end tests check: that there is no error, and that something happens in time.
package check

import (
	"testing"
	"time"
)

// Must ends the test if there is an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until done returns true, and ends the test after the given time.
func Eventually(t *testing.T, most time.Duration, what string, done func() bool) {
	t.Helper()
	if !Within(t, most, done) {
		t.Fatalf("not within %v: %s", most, what)
	}
}

// Within waits until done returns true, and reports whether it did within the given time. It asks less often the longer it
// takes: every 100 ms at first, every second after 50 s.
func Within(t *testing.T, most time.Duration, done func() bool) bool {
	t.Helper()
	begin := time.Now()
	for !done() {
		passed := time.Since(begin)
		if passed > most {
			return false
		}
		select {
		case <-t.Context().Done():
			return false
		case <-time.After(min(max(passed/50, 100*time.Millisecond), time.Second)):
		}
	}
	return true
}
