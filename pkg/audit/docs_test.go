package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// The line in docs/audit.md is the one that the event makes, and is proven under the key that is told there.
func TestExampleInTheDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := bytes.Cut(page, []byte("```json\n"))
	example, _, ended := bytes.Cut(rest, []byte("```\n"))
	var line bytes.Buffer
	if err := json.Compact(&line, example); err != nil || !found || !ended {
		t.Fatalf("found %v, ended %v, %v", found, ended, err)
	}
	line.WriteByte('\n')

	key := []byte(strings.Repeat("k", KeyBytes))
	l := &Log{process: "api", site: "host-1", hashes: newHashing(key)}
	text, err := l.encode(download(), noon())
	if err != nil {
		t.Fatal(err)
	}
	made, _ := l.hashes.seal(text, link{chain: strings.Repeat("0f", 16), previous: noHash})
	if !bytes.Equal(made, line.Bytes()) {
		t.Errorf("docs/audit.md shows\n%swant\n%s", line.Bytes(), made)
	}
	if report := judge(t, Proof{Key: key}, line.Bytes()); report.Problem != nil {
		t.Error(report.Problem)
	}
}
