package audit

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestContinue(t *testing.T) {
	path := logFile(t)
	for range 3 {
		l := mustOpen(t, config(path), openHandle)
		mustRecord(t, l, download())
		mustClose(t, l)
	}
	actions, report := verified(t, path)
	want(t, actions, "start file stop start file stop start file stop")
	if len(report.Chains) != 1 || report.Chains[0].Last != 8 {
		t.Errorf("chains %+v, want one of 9 lines", report.Chains)
	}
}

func TestTornLineIsCutOff(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l, download())
	mustClose(t, l)
	whole := content(t, path)
	line := linesOf(whole)[1]
	for name, tc := range map[string]struct{ before, torn, actions string }{
		"one byte":         {string(whole), "{", "start file stop repair start stop"},
		"half a line":      {string(whole), string(line[:len(line)/2]), "start file stop repair start stop"},
		"all but its end":  {string(whole), string(line[:len(line)-1]), "start file stop repair start stop"},
		"zeros":            {string(whole), strings.Repeat("\x00", 500), "start file stop repair start stop"},
		"the only line":    {"", string(line[:len(line)-1]), "repair start stop"},
		"nothing was torn": {string(whole), "", "start file stop start stop"},
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			must(t, os.WriteFile(path, []byte(tc.before+tc.torn), 0o600))
			mustClose(t, mustOpen(t, config(path), openHandle))
			actions, report := verified(t, path)
			want(t, actions, tc.actions)
			if len(report.Chains) != 1 {
				t.Errorf("%d chains", len(report.Chains))
			}
		})
	}
}

// Files that are not valid logs are refused and not changed.
func TestOpenRefusesOtherFiles(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustClose(t, l)
	whole := content(t, path)
	for name, tc := range map[string]struct {
		text    string
		key     []byte
		wantErr string
	}{
		"a secret":         {"hunter2", testKey, "not an audit log"},
		"other lines":      {"a\nb\n", testKey, "not an audit log line"},
		"one long line":    {strings.Repeat("x", 3*LineLimit), testKey, "not an audit log"},
		"long and ended":   {strings.Repeat("x", 3*LineLimit) + "\n", testKey, "not an audit log line"},
		"another key":      {string(whole), bytes.Repeat([]byte("k"), 32), "another key"},
		"no key any more":  {string(whole), nil, "no key is given"},
		"an altered line":  {strings.ReplaceAll(string(whole), "host-1", "host-2"), testKey, "altered"},
		"altered and torn": {strings.ReplaceAll(string(whole), "host-1", "host-2") + "{", testKey, "altered"},
		"a foreign ending": {string(whole) + "hunter2", testKey, "not an audit log"},
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			must(t, os.WriteFile(path, []byte(tc.text), 0o600))
			cfg := config(path)
			cfg.Key = tc.key
			l, err := Open(cfg)
			if err == nil {
				mustClose(t, l)
				t.Fatal("the file was continued")
			}
			if !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, tc.wantErr)
			}
			if string(content(t, path)) != tc.text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestLock(t *testing.T) {
	path := logFile(t)
	first := mustOpen(t, config(path), openHandle)
	before := content(t, path)
	if second, err := Open(config(path)); err == nil {
		mustClose(t, second)
		t.Fatal("a second log opened the same file")
	} else if !strings.Contains(err.Error(), "another process writes it") {
		t.Error(err)
	}
	if !bytes.Equal(content(t, path), before) {
		t.Error("the refused Open changed the file")
	}
	mustClose(t, first)
	mustClose(t, mustOpen(t, config(path), openHandle))
	verified(t, path)
}

func TestRotation(t *testing.T) {
	for _, durable := range []bool{false, true} {
		path := logFile(t)
		cfg := config(path)
		cfg.Sync = durable
		l := mustOpen(t, cfg, openHandle)
		mustRecord(t, l, download())
		for _, old := range []string{path + ".1", path + ".2"} {
			must(t, os.Rename(path, old))
			if old == path+".2" { // as logrotate's create does
				must(t, os.WriteFile(path, nil, 0o600))
			}
			mustRecord(t, l, Event{Action: Status, Outcome: Success})
		}
		mustClose(t, l)
		actions, report := verified(t, path+".1", path+".2", path)
		want(t, actions, "start file status status stop")
		if len(report.Chains) != 1 {
			t.Errorf("%d chains, want one through all files", len(report.Chains))
		}
		// The last file alone is valid only with the previous file's head.
		head := report.Chains[0].Head
		_, before := verified(t, path+".1", path+".2")
		for _, tc := range []struct {
			proof Proof
			good  bool
		}{
			{Proof{Key: testKey}, false},
			{Proof{Key: testKey, After: []string{head}}, false},
			{Proof{Key: testKey, After: []string{before.Chains[0].Head}}, true},
		} {
			report, err := Verify(tc.proof, Input{path, bytes.NewReader(content(t, path))})
			if err != nil || (report.Problem == nil) != tc.good {
				t.Errorf("%v: %v, %v", tc.proof.After, err, report.Problem)
			}
		}
	}
}

// Events are refused while the new file cannot be opened.
func TestRotationFails(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	must(t, os.Rename(path, path+".1"))
	must(t, os.Mkdir(path, 0o700))
	unavailable(t, l.Record(download()))
	must(t, os.Remove(path))
	other := mustOpen(t, config(path), openHandle)
	unavailable(t, l.Record(download()))
	mustClose(t, other)
	must(t, os.WriteFile(path, []byte("hunter2\n"), 0o600))
	unavailable(t, l.Record(download()))
	must(t, os.Remove(path))
	mustRecord(t, l, download())
	mustClose(t, l)
	actions, _ := verified(t, path+".1", path)
	want(t, actions, "start repair file stop")
}

func TestForeignChange(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l, download(), download())
	must(t, os.Truncate(path, 0))
	mustRecord(t, l, Event{Action: Status, Outcome: Success})
	mustClose(t, l)
	text := content(t, path)
	if !bytes.Contains(linesOf(text)[0], []byte("another program changed the file: it has 0 bytes instead of")) {
		t.Errorf("the file begins with %s", text)
	}
	report, err := Verify(Proof{Key: testKey}, Input{path, bytes.NewReader(text)})
	if err != nil || report.Problem == nil || !strings.Contains(report.Problem.Text, "the lines before it are missing") {
		t.Errorf("%v, %+v", err, report.Problem)
	}
}
