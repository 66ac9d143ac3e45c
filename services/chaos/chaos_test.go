package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestAShortRun breaks what mends at once, half a minute long, with a fixed seed.
func TestAShortRun(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/",
		"../api", "../auth", "../worker", "../scheduler", "../sluice")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the services: %v\n%s", err, said)
	}
	var said strings.Builder
	err := run(t.Context(), options{
		lasts: 30 * time.Second, retention: 10 * time.Second, seed: 1, patients: 24, bin: bin,
		only: []string{
			"worker-killed", "workers-killed", "api-killed", "scheduler-killed", "auth-killed", "redis-killed", "store-killed",
			"postgres-killed", "everything-killed", "tasks-repeated",
		},
	}, &said)
	t.Log(said.String())
	if err != nil {
		t.Error(err)
	}
}
