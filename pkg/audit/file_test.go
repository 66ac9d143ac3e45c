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
	about, report := proven(t, path)
	want(t, about, "start file stop start file stop start file stop")
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
	for name, tc := range map[string]struct{ before, torn, about string }{
		"one byte":         {string(whole), "{", "start file stop repair start stop"},
		"half a line":      {string(whole), string(line[:len(line)/2]), "start file stop repair start stop"},
		"all but its end":  {string(whole), string(line[:len(line)-1]), "start file stop repair start stop"},
		"never written":    {string(whole), strings.Repeat("\x00", 500), "start file stop repair start stop"},
		"the only line":    {"", string(line[:len(line)-1]), "repair start stop"},
		"nothing was torn": {string(whole), "", "start file stop start stop"},
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			if err := os.WriteFile(path, []byte(tc.before+tc.torn), 0o600); err != nil {
				t.Fatal(err)
			}
			mustClose(t, mustOpen(t, config(path), openHandle))
			about, report := proven(t, path)
			want(t, about, tc.about)
			if len(report.Chains) != 1 {
				t.Errorf("%d chains", len(report.Chains))
			}
		})
	}
}

// A file that is named by mistake, and one that was tampered with, stays as it is.
func TestWhatIsNotContinued(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustClose(t, l)
	whole := content(t, path)
	for name, tc := range map[string]struct {
		text string
		key  []byte
		says string
	}{
		"a secret":         {"hunter2", keyOfTests, "no audit log"},
		"other lines":      {"a\nb\n", keyOfTests, "no line of an audit log"},
		"one long line":    {strings.Repeat("x", 3*LineLimit), keyOfTests, "no audit log"},
		"long and ended":   {strings.Repeat("x", 3*LineLimit) + "\n", keyOfTests, "no line of an audit log"},
		"another key":      {string(whole), bytes.Repeat([]byte("k"), 32), "another key"},
		"no key any more":  {string(whole), nil, "no key was given"},
		"an altered line":  {strings.ReplaceAll(string(whole), "host-1", "host-2"), keyOfTests, "altered"},
		"altered and torn": {strings.ReplaceAll(string(whole), "host-1", "host-2") + "{", keyOfTests, "altered"},
		"a foreign ending": {string(whole) + "hunter2", keyOfTests, "no audit log"},
	} {
		t.Run(name, func(t *testing.T) {
			path := logFile(t)
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := config(path)
			cfg.Key = tc.key
			l, err := Open(cfg)
			if err == nil {
				mustClose(t, l)
				t.Fatal("it was continued")
			}
			if !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, tc.says)
			}
			if string(content(t, path)) != tc.text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestOneWriterForEachFile(t *testing.T) {
	path := logFile(t)
	first := mustOpen(t, config(path), openHandle)
	before := content(t, path)
	if second, err := Open(config(path)); err == nil {
		mustClose(t, second)
		t.Fatal("two logs write one file")
	} else if !strings.Contains(err.Error(), "another process writes it") {
		t.Error(err)
	}
	if !bytes.Equal(content(t, path), before) {
		t.Error("the second one has changed the file")
	}
	mustClose(t, first)
	mustClose(t, mustOpen(t, config(path), openHandle))
	proven(t, path)
}

func TestRotation(t *testing.T) {
	for _, durable := range []bool{false, true} {
		path := logFile(t)
		cfg := config(path)
		cfg.Sync = durable
		l := mustOpen(t, cfg, openHandle)
		mustRecord(t, l, download())
		for _, old := range []string{path + ".1", path + ".2"} {
			if err := os.Rename(path, old); err != nil {
				t.Fatal(err)
			}
			if old == path+".2" { // as logrotate's create does
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			mustRecord(t, l, Event{Action: Status, Outcome: Success})
		}
		mustClose(t, l)
		about, report := proven(t, path+".1", path+".2", path)
		want(t, about, "start file status status stop")
		if len(report.Chains) != 1 {
			t.Errorf("%d chains, want one through all files", len(report.Chains))
		}
		// The last file by itself is proven only to those who know where it goes on.
		head := report.Chains[0].Head
		_, before := proven(t, path+".1", path+".2")
		for _, tc := range []struct {
			proof Proof
			good  bool
		}{
			{Proof{Key: keyOfTests}, false},
			{Proof{Key: keyOfTests, After: []string{head}}, false},
			{Proof{Key: keyOfTests, After: []string{before.Chains[0].Head}}, true},
		} {
			report, err := Verify(tc.proof, Part{path, bytes.NewReader(content(t, path))})
			if err != nil || (report.Problem == nil) != tc.good {
				t.Errorf("%v: %v, %v", tc.proof.After, err, report.Problem)
			}
		}
	}
}

// Nothing is recorded while the new file cannot be had, and it goes on as soon as it can.
func TestRotationThatFails(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	unavailable(t, l.Record(download()))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, config(path), openHandle)
	unavailable(t, l.Record(download()))
	mustClose(t, other)
	if err := os.WriteFile(path, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unavailable(t, l.Record(download()))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, l, download())
	mustClose(t, l)
	about, _ := proven(t, path+".1", path)
	want(t, about, "start repair file stop")
}

// Somebody who cuts or writes the file leaves a trace in it as well as in the chain.
func TestForeignChange(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l, download(), download())
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, l, Event{Action: Status, Outcome: Success})
	mustClose(t, l)
	text := content(t, path)
	if !bytes.Contains(linesOf(text)[0], []byte("somebody else has changed the file: it has 0 bytes in place of")) {
		t.Errorf("the file begins with %s", text)
	}
	report, err := Verify(Proof{Key: keyOfTests}, Part{path, bytes.NewReader(text)})
	if err != nil || report.Problem == nil || !strings.Contains(report.Problem.Text, "the lines before it are missing") {
		t.Errorf("%v, %+v", err, report.Problem)
	}
}
