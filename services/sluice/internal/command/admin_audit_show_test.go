package command

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// "Who exported this group?" is answered with all events of its exports, and with no others.
func TestAuditShow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.ndjson")
	log, err := audit.Open(audit.Config{Path: path, Process: "api", Site: "host-1"})
	must(t, err)
	alice, bob := export.Owner{Issuer: "https://i.example", Subject: "alice"}, export.Owner{Issuer: "https://i.example", Subject: "bob"}
	first, second := export.NewJobID(), export.NewJobID()
	at := netip.MustParseAddr("192.0.2.7")
	for _, event := range []audit.Event{
		{Action: audit.KickOff, Outcome: audit.Success, Agent: alice, Address: at, Job: first, Target: "Group/ten", HTTPStatus: 202},
		{Action: audit.KickOff, Outcome: audit.Success, Agent: bob, Address: at, Job: second, Target: "Group/tenth", HTTPStatus: 202},
		{Action: audit.File, Outcome: audit.Success, Agent: alice, Address: at, Job: first, File: "Patient.ndjson", Bytes: 7, HTTPStatus: 200},
		{Action: audit.File, Outcome: audit.Success, Agent: bob, Address: at, Job: second, File: "Patient.ndjson", Bytes: 7, HTTPStatus: 200},
		{Action: audit.Purge, Outcome: audit.Success, Job: first},
	} {
		must(t, log.Record(event))
	}
	must(t, log.Close())
	show := func(code int, contains string, args ...string) []string {
		t.Helper()
		out := do(t, code, contains, append([]string{"admin", "audit", "show"}, args...)...)
		return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	}
	lines := show(0, "", "--group", "ten", path)
	if len(lines) != 3 || !strings.Contains(lines[0], "kick-off success subject=alice issuer=https://i.example address=192.0.2.7 job="+string(first)+" of=Group/ten") ||
		!strings.Contains(lines[1], "file=Patient.ndjson bytes=7") || !strings.Contains(lines[2], "purge") {
		t.Errorf("of the group:\n%s", strings.Join(lines, "\n"))
	}
	content, err := os.ReadFile(path)
	must(t, err)
	for _, line := range show(0, "", "--subject", "bob", "--since", "1h", "--json", path) {
		if !strings.Contains(string(content), line+"\n") || !strings.Contains(line, `"value":"bob"`) {
			t.Errorf("with --json: %s", line)
		}
	}
	if lines := show(0, "", "--job", string(second), "--subject", "alice", path); lines[0] != "" {
		t.Errorf("of another subject: %v", lines)
	}
	if lines := show(0, "", "--since", "2999-01-01", path); lines[0] != "" {
		t.Errorf("of the future: %v", lines)
	}
	if lines := show(0, "", path); len(lines) != 7 { // with the start and the stop of the log
		t.Errorf("without a filter: %v", lines)
	}
	show(2, "--since", "--since", "yesterday", path)
	show(1, "not searched: 1", write(t, string(content)+"{}\n"))
	show(1, "no such file", filepath.Join(t.TempDir(), "none"))
}
