package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestAShortRun breaks once each of what mends at once, with a fixed seed.
func TestAShortRun(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/",
		"../api", "../auth", "../worker", "../scheduler", "../sluice")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the services: %v\n%s", err, said)
	}
	var said strings.Builder
	err := run(t.Context(), options{
		retention: 10 * time.Second, silence: 8 * time.Second, seed: 1, patients: 20, bin: bin,
		only: []string{"worker-killed", "api-killed", "redis-killed", "everything-killed"},
	}, &said)
	t.Log(said.String())
	if err != nil {
		t.Error(err)
	}
}
