package ndjson_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source/ndjson"
)

func TestCheckOfAChangedFile(t *testing.T) { // pitfall 34
	dir := t.TempDir()
	name := filepath.Join(dir, "Patient.ndjson")
	if err := os.WriteFile(name, []byte(`{"resourceType":"Patient","id":"a"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ndjson.Open(t.Context(), ndjson.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Check(t.Context()); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	if err := os.WriteFile(name, []byte(`{"resourceType":"Patient","id":"b2"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("after a change: %v", err)
	}
}
