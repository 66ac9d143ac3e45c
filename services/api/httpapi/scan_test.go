package httpapi

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
)

// Only so many requests at once read a file from its beginning to a range far behind it.
func TestScansAreLimited(t *testing.T) {
	t.Parallel()
	const far, near = 3 * gzipblocks.BlockSize, gzipblocks.BlockSize
	s := &service{scans: make(chan struct{}, 1)}
	text := strings.Repeat("x", far+1)
	if err := s.skip(t.Context(), strings.NewReader(text), far); err != nil || len(s.scans) != 0 {
		t.Fatalf("%v, %d places taken", err, len(s.scans))
	}
	s.scans <- struct{}{}
	var r refusal
	if err := s.skip(t.Context(), strings.NewReader(text), far); !errors.As(err, &r) || r.status != http.StatusTooManyRequests {
		t.Errorf("without a place: %v, want a 429", err)
	}
	if err := s.skip(t.Context(), strings.NewReader(text), near); err != nil {
		t.Errorf("a range at the beginning: %v", err)
	}
	<-s.scans
	if err := s.skip(t.Context(), strings.NewReader("short"), far); err == nil || len(s.scans) != 0 {
		t.Errorf("a shorter file: %v, %d places taken", err, len(s.scans))
	}
}
