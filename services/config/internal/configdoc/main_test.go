package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The committed table equals the one that is generated from the config structs.
func TestTableIsCurrent(t *testing.T) {
	t.Chdir("../../../..")
	committed, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "configuration.md")
	if err := os.WriteFile(file, committed, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{file}); err != nil {
		t.Fatal(err)
	}
	if written, err := os.ReadFile(file); err != nil || !bytes.Equal(written, committed) {
		t.Errorf("docs/configuration.md is not current: run make gen (%v)", err)
	}
}
