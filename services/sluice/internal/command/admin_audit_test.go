package command

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

const auditKey = "0123456789abcdef0123456789abcdef"

// auditLog writes a log of two files, the older one first.
func auditLog(t *testing.T, key []byte) (files []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.ndjson")
	log, err := audit.Open(audit.Config{Path: path, Process: "api", Site: "host-1", Key: key})
	must(t, err)
	event := audit.Event{Action: audit.Status, Outcome: audit.Success, Agent: export.Owner{Issuer: "i", Subject: "s"}}
	err = errors.Join(log.Record(event), os.Rename(path, path+".1"), log.Record(event), log.Close())
	must(t, err)
	return []string{path + ".1", path}
}

// auditVerify runs the command without a database.
func auditVerify(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, append([]string{"admin", "audit", "verify"}, args...)...)
}

func TestAuditVerify(t *testing.T) {
	t.Setenv("SLUICE_DATABASE_URL", "")
	files, key := auditLog(t, []byte(auditKey)), write(t, auditKey+"\n")
	code, stdout, stderr := auditVerify(t, "--key-file", key, files[0], files[1])
	rows := strings.Split(stdout, "\n")
	if code != ExitGood || stderr != "" || len(rows) != 4 || rows[2] != "4 lines are valid under the key" {
		t.Fatalf("exit %d, %q, %q", code, stdout, stderr)
	}
	if got := strings.Fields(rows[1]); len(got) != 8 || strings.Join(got[1:5], " ") != "api host-1 0 3" {
		t.Errorf("the chain is printed as %q", rows[1])
	}

	code, stdout, stderr = auditVerify(t, "--json", "--key-file", key, files[0], files[1])
	report := decode[audit.Report](t, stdout)
	if code != ExitGood || stderr != "" || report.Lines != 4 || len(report.Chains) != 1 || report.Problem != nil {
		t.Fatalf("exit %d, %+v, %q", code, report, stderr)
	}
	head := report.Chains[0].Head
	code, stdout, _ = auditVerify(t, "--json", "--key-file", key, files[0])
	before := decode[audit.Report](t, stdout).Chains[0].Head
	if code != ExitGood {
		t.Errorf("the older file alone: exit %d", code)
	}
	for _, tc := range []struct {
		args     []string
		code     int
		contains string
	}{
		{[]string{"--expect-head", head, files[0], files[1]}, ExitGood, ""},
		{[]string{"--expect-head", head + "," + before, files[0], files[1]}, ExitGood, ""},
		{[]string{"--expect-head", before, "--expect-head", head, files[0]}, ExitFailure, "the log was shortened"},
		{[]string{"--after", before, files[1]}, ExitGood, ""},
		{[]string{files[1]}, ExitFailure, "the lines before it are missing"},
		{[]string{files[1], files[0]}, ExitFailure, "line 1: chain"},
	} {
		code, _, stderr := auditVerify(t, append([]string{"--key-file", key}, tc.args...)...)
		if code != tc.code || !strings.Contains(stderr, tc.contains) || (tc.contains == "") != (stderr == "") {
			t.Errorf("%q: exit %d, %q; want exit %d and %q", tc.args, code, stderr, tc.code, tc.contains)
		}
	}
}

func TestAuditVerifyFindsAnAlteredLine(t *testing.T) {
	files, key := auditLog(t, []byte(auditKey)), write(t, auditKey)
	good, err := os.ReadFile(files[0])
	must(t, err)
	must(t, os.WriteFile(files[0], bytes.Replace(good, []byte(`"value":"s"`), []byte(`"value":"x"`), 1), 0o600))
	code, stdout, stderr := auditVerify(t, "--key-file", key, files[0], files[1])
	want := "sluice: the audit log is invalid: " + files[0] + ", line 2: it was altered, or was written under another key\n"
	if code != ExitFailure || stderr != want || strings.Contains(stdout, "valid") || strings.Count(stdout, "\n") != 2 {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, stderr = auditVerify(t, "--json", "--key-file", key, files[0], files[1])
	report := decode[audit.Report](t, stdout)
	if code != ExitFailure || report.Problem == nil || report.Problem.File != files[0] || report.Problem.Line != 2 {
		t.Errorf("exit %d, %+v, %q", code, report, stderr)
	}
}

// A killed process and lines missing at the end look the same: a note, and an error with --strict.
func TestAuditVerifyNamesAChainWithoutAStop(t *testing.T) {
	key := write(t, auditKey)
	first, second := auditLog(t, []byte(auditKey)), auditLog(t, []byte(auditKey))
	stopped := append(append([]string{"--key-file", key, "--strict"}, first...), second...)
	if code, _, stderr := auditVerify(t, stopped...); code != ExitGood || stderr != "" {
		t.Errorf("whole chains: exit %d, %q", code, stderr)
	}
	text, err := os.ReadFile(first[1])
	must(t, err)
	lines := bytes.SplitAfter(text, []byte{'\n'})
	must(t, os.WriteFile(first[1], bytes.Join(lines[:len(lines)-2], nil), 0o600)) // without its stop
	code, stdout, stderr := auditVerify(t, append([]string{"--key-file", key, first[0], first[1]}, second...)...)
	if code != ExitGood || !strings.Contains(stderr, "of api ends without a stop") || !strings.Contains(stdout, "are valid") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := auditVerify(t, stopped...); code != ExitFailure || !strings.Contains(stderr, "1 chain without a stop") {
		t.Errorf("strict: exit %d, %q", code, stderr)
	}
}

func TestAuditVerifyWithoutAKey(t *testing.T) {
	files := auditLog(t, nil)
	stdin, err := os.Open(files[0])
	must(t, err)
	defer func(was *os.File) { os.Stdin = was; stdin.Close() }(os.Stdin)
	os.Stdin = stdin
	code, stdout, stderr := auditVerify(t, "-", files[1])
	if code != ExitGood || !strings.Contains(stdout, "\n4 lines are valid; without a key") || stderr != "" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	code, _, stderr = auditVerify(t, "--key-file", write(t, auditKey), files[0], files[1])
	if code != ExitFailure || !strings.Contains(stderr, "written without a key, and a key is given") {
		t.Errorf("with a key: exit %d, %q", code, stderr)
	}
	if got := printable("\x1b[2Jhost\n"); got != "?[2Jhost?" {
		t.Errorf("printed as %q", got)
	}
}

func TestAuditUsage(t *testing.T) {
	file := auditLog(t, nil)[0]
	for _, tc := range []struct {
		args     []string
		code     int
		contains string
	}{
		{nil, ExitUsage, "missing FILE: "},
		{[]string{"--expect-head", "ABC", file}, ExitUsage, "--expect-head"},
		{[]string{"--after", strings.Repeat("g", 64), file}, ExitUsage, "--after"},
		{[]string{"--key-file", write(t, "short\n"), file}, ExitFailure, "at least 32 bytes"},
		{[]string{"--key-file", "/nowhere", file}, ExitFailure, "read the key"},
		{[]string{"/nowhere"}, ExitFailure, "/nowhere"},
		{[]string{write(t, "")}, ExitFailure, "the log is empty"},
	} {
		do(t, tc.code, tc.contains, append([]string{"admin", "audit", "verify"}, tc.args...)...)
	}
	do(t, ExitUsage, "missing command\nSee sluice admin audit --help.", "admin", "audit")
}
