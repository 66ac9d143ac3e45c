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

// A torn line is cut off. A file that is not a valid log is refused and not changed.
func TestOpenExistingFiles(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l, download())
	mustClose(t, l)
	whole := string(content(t, path))
	line := string(linesOf([]byte(whole))[1])
	altered := strings.ReplaceAll(whole, "host-1", "host-2")
	for name, tc := range map[string]struct {
		text    string
		key     []byte
		wantErr string
		actions string
	}{
		"one byte":         {whole + "{", testKey, "", "start file stop repair start stop"},
		"half a line":      {whole + line[:len(line)/2], testKey, "", "start file stop repair start stop"},
		"all but its end":  {whole + line[:len(line)-1], testKey, "", "start file stop repair start stop"},
		"zeros":            {whole + strings.Repeat("\x00", 500), testKey, "", "start file stop repair start stop"},
		"the only line":    {line[:len(line)-1], testKey, "", "repair start stop"},
		"nothing was torn": {whole, testKey, "", "start file stop start stop"},
		"a secret":         {"hunter2", testKey, "not an audit log", ""},
		"other lines":      {"a\nb\n", testKey, "not an audit log line", ""},
		"one long line":    {strings.Repeat("x", 3*LineLimit), testKey, "not an audit log", ""},
		"long and ended":   {strings.Repeat("x", 3*LineLimit) + "\n", testKey, "not an audit log line", ""},
		"another key":      {whole, bytes.Repeat([]byte("k"), 32), "another key", ""},
		"no key any more":  {whole, nil, "no key is given", ""},
		"an altered line":  {altered, testKey, "altered", ""},
		"altered and torn": {altered + "{", testKey, "altered", ""},
		"a foreign ending": {whole + "hunter2", testKey, "not an audit log", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(logFile(t))
			cfg.Key = tc.key
			must(t, os.WriteFile(cfg.Path, []byte(tc.text), 0o600))
			l, err := Open(cfg)
			if err == nil {
				mustClose(t, l)
			}
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("%v, want %q", err, tc.wantErr)
				}
				if string(content(t, cfg.Path)) != tc.text {
					t.Error("the file was changed")
				}
				return
			}
			must(t, err)
			actions, report := verified(t, cfg.Path)
			want(t, actions, tc.actions)
			if len(report.Chains) != 1 {
				t.Errorf("%d chains", len(report.Chains))
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
