package audit

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// sample is a log of two processes whose lines are mixed, as a collector leaves them.
func sample(t testing.TB, key []byte) []byte {
	t.Helper()
	var files [2][]byte
	for i := range files {
		cfg := config(logFile(t))
		cfg.Key, cfg.Process = key, []string{"api", "scheduler"}[i]
		l := mustOpen(t, cfg, openHandle)
		mustRecord(t, l, download(), Event{Action: Denied, Outcome: Refused, Reason: "no token"}, download(), download())
		mustClose(t, l)
		files[i] = content(t, cfg.Path)
	}
	var mixed []byte
	other := linesOf(files[1])
	for i, line := range linesOf(files[0]) {
		mixed = append(append(mixed, line...), other[i]...)
	}
	return mixed
}

// judge verifies one text.
func judge(t testing.TB, proof Proof, text []byte) Report {
	t.Helper()
	report, err := Verify(proof, Part{"log", bytes.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestVerify(t *testing.T) {
	for _, key := range [][]byte{nil, keyOfTests} {
		text := sample(t, key)
		report := judge(t, Proof{Key: key}, text)
		if report.Problem != nil || report.Lines != 12 || len(report.Chains) != 2 {
			t.Fatalf("report %+v, problem %v", report, report.Problem)
		}
		for i, process := range []string{"api", "scheduler"} {
			chain := report.Chains[i]
			if chain.Process != process || chain.First != 0 || chain.Last != 5 || chain.Lines != 6 {
				t.Errorf("chain %+v", chain)
			}
		}
	}
	empty := judge(t, Proof{Key: keyOfTests}, nil)
	if empty.Problem == nil || empty.Problem.Error() != "there are no lines in it" || len(empty.Chains) != 0 {
		t.Errorf("nothing: %+v", empty)
	}
}

// Any byte that is another one is found, wherever it is: every byte of a line between two others, and some hundreds in
// a log of two chains.
func TestAnyByte(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	alter := func(t *testing.T, key, text []byte, at int, to byte) {
		t.Helper()
		if text[at] == to {
			return
		}
		changed := bytes.Clone(text)
		changed[at] = to
		report := judge(t, Proof{Key: key}, changed)
		number := int64(1 + bytes.Count(text[:at], []byte{'\n'}))
		if p := report.Problem; p == nil || p.Line != number || p.File != "log" {
			t.Fatalf("byte %d of line %d was %q and is %q: %v", at, number, text[at], to, p)
		}
	}
	for _, key := range [][]byte{nil, keyOfTests} {
		cfg := config(logFile(t))
		cfg.Key = key
		l := mustOpen(t, cfg, openHandle)
		mustRecord(t, l, download())
		mustClose(t, l)
		text := content(t, cfg.Path)
		lines := linesOf(text)
		for at := len(lines[0]); at < len(lines[0])+len(lines[1]); at++ {
			alter(t, key, text, at, text[at]^[]byte{0x20, 1 << random.IntN(8)}[at%2]) // the case of a letter, or any bit
		}
		text = sample(t, key)
		for range 400 {
			alter(t, key, text, random.IntN(len(text)), byte(random.IntN(256)))
		}
	}
}

// TestTampering alters a log by whole lines: each of them in turn.
func TestTampering(t *testing.T) {
	text := sample(t, keyOfTests)
	lines := linesOf(text)
	join := func(parts ...[][]byte) []byte {
		var all []byte
		for _, part := range parts {
			all = append(all, bytes.Join(part, nil)...)
		}
		return all
	}
	for i := range lines {
		one := lines[i : i+1]
		shows := i + 2 // where a removed line is missed: at the next one of its chain
		if i+2 >= len(lines) {
			shows = 0 // it was the last
		}
		for name, tc := range map[string]struct {
			text []byte
			line int // where it has to show, from 1; 0: nowhere
			says string
		}{
			"removed":            {join(lines[:i], lines[i+1:]), shows, "missing"},
			"repeated":           {join(lines[:i+1], one, lines[i+1:]), i + 2, "comes after number"},
			"at the end":         {join(lines, one), 13, "comes after number"},
			"garbage":            {join(lines[:i], [][]byte{[]byte("{}\n")}, lines[i:]), i + 1, "no line of an audit log"},
			"blank":              {join(lines[:i], [][]byte{[]byte("\n")}, lines[i:]), i + 1, "no line of an audit log"},
			"huge":               {join(lines[:i], [][]byte{bytes.Repeat([]byte("x"), 3*LineLimit), []byte("\n")}, lines[i:]), i + 1, "longer"},
			"shortened":          {join(lines[:i], [][]byte{one[0][:200], []byte("\n")}, lines[i+1:]), i + 1, "does not end as"},
			"cut short":          {join(lines[:i], [][]byte{one[0][:200]}), i + 1, "its end is missing"},
			"with a byte before": {join(lines[:i], [][]byte{[]byte(" ")}, lines[i:]), i + 1, "no line of an audit log"},
			"with a byte behind": {join(lines[:i], [][]byte{one[0][:len(one[0])-1], []byte(" \n")}, lines[i+1:]), i + 1, "does not end as"},
		} {
			report := judge(t, Proof{Key: keyOfTests}, tc.text)
			switch p := report.Problem; {
			case p == nil && tc.line != 0, p != nil && (p.Line != int64(tc.line) || !strings.Contains(p.Text, tc.says)):
				t.Errorf("line %d %s: %v, want line %d and %q", i+1, name, p, tc.line, tc.says)
			}
		}
		if i+2 < len(lines) { // with the next one of its chain
			swapped := join(lines[:i], lines[i+2:i+3], lines[i+1:i+2], one, lines[i+3:])
			if report := judge(t, Proof{Key: keyOfTests}, swapped); report.Problem == nil {
				t.Errorf("lines %d and %d swapped, and nothing was found", i+1, i+3)
			}
		}
	}
	// Lines of different chains have no order among themselves.
	if report := judge(t, Proof{Key: keyOfTests}, join(lines[1:2], lines[:1], lines[2:])); report.Problem != nil {
		t.Error(report.Problem)
	}
}

// forge makes a chain, or goes on with one: a line for each outcome.
func forge(key []byte, at link, outcomes ...string) (text []byte, next link) {
	for _, outcome := range outcomes {
		line, sum := newHashing(key).seal([]byte(`{"resourceType":"AuditEvent","outcome":"`+outcome+`"}`), at)
		text, at = append(text, line...), at.after(sum)
	}
	return text, at
}

// A chain without a key can be made anew, and one that is put together of two ends shows where they meet.
func TestForging(t *testing.T) {
	begin := newChain()
	plain, _ := forge(nil, begin, "0", "0")
	keyed, next := forge(keyOfTests, begin, "0", "0")
	other, _ := forge(keyOfTests, begin, "4", "4", "4")
	more, _ := forge(keyOfTests, next, "8")
	late, _ := forge(keyOfTests, link{chain: begin.chain, sequence: 1, previous: noHash}, "0")
	unjson, _ := newHashing(keyOfTests).seal([]byte(`{"resourceType":"AuditEvent",nonsense}`), newChain())
	for name, tc := range map[string]struct {
		key  []byte
		text []byte
		says string // "" when it is good
	}{
		"plain, no key":           {nil, plain, ""},
		"plain, key":              {keyOfTests, plain, "not under a key, although one was given"},
		"keyed, no key":           {nil, keyed, "under a key, and no key was given"},
		"keyed, another key":      {bytes.Repeat([]byte("k"), 32), keyed, "altered, or is under another key"},
		"keyed":                   {keyOfTests, append(bytes.Clone(keyed), more...), ""},
		"the tail of another":     {keyOfTests, append(bytes.Clone(keyed), linesOf(other)[2]...), "does not follow"},
		"a later beginning":       {keyOfTests, late, "the lines before it are missing"},
		"a plain line in a keyed": {keyOfTests, append(bytes.Clone(keyed), plain...), "not under a key"},
		"what is no JSON":         {keyOfTests, unjson, "no AuditEvent"},
	} {
		report := judge(t, Proof{Key: tc.key}, tc.text)
		switch p := report.Problem; {
		case tc.says == "" && p != nil, tc.says != "" && (p == nil || !strings.Contains(p.Text, tc.says)):
			t.Errorf("%s: %v, want %q", name, p, tc.says)
		}
	}
}

// Only who has noted a head can tell that the end is gone.
func TestTailTruncation(t *testing.T) {
	text := sample(t, keyOfTests)
	lines := linesOf(text)
	heads := judge(t, Proof{Key: keyOfTests}, text).Chains
	for cut := 1; cut < len(lines); cut++ {
		shorter := bytes.Join(lines[:len(lines)-cut], nil)
		if report := judge(t, Proof{Key: keyOfTests}, shorter); report.Problem != nil {
			t.Fatalf("%d lines fewer: %v: a head that nobody noted cannot be missed", cut, report.Problem)
		}
		report := judge(t, Proof{Key: keyOfTests, Heads: []string{heads[0].Head, heads[1].Head}}, shorter)
		if p := report.Problem; p == nil || p.File != "" || !strings.Contains(p.Error(), "the log was shortened") {
			t.Errorf("%d lines fewer: %v", cut, report.Problem)
		}
	}
	// A head that was noted yesterday is inside today's log.
	earlier := judge(t, Proof{Key: keyOfTests}, bytes.Join(lines[:5], nil)).Chains
	if report := judge(t, Proof{Key: keyOfTests, Heads: []string{earlier[0].Head, earlier[1].Head}}, text); report.Problem != nil {
		t.Error(report.Problem)
	}
	// The hash of a line that is not proven is no head: here of a line behind a gap.
	gap := bytes.Join(append(lines[:4:4], lines[6:]...), nil)
	report, err := Verify(Proof{Key: keyOfTests, Heads: []string{heads[0].Head}}, Part{"log", bytes.NewReader(gap)})
	if err != nil || len(report.Chains) != 2 || report.Chains[0].Last != 1 || report.Chains[0].Lines != 2 {
		t.Errorf("%v, %+v: want both chains proven up to the gap", err, report)
	}
}

func TestVerifyFails(t *testing.T) {
	if _, err := Verify(Proof{}, Part{"log", iotest.ErrReader(errDisk)}); err == nil || !strings.Contains(err.Error(), "read log: no space") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	long := append(bytes.Repeat([]byte("x"), 2*LineLimit), "\n{}"...)
	half := Part{"log", iotest.DataErrReader(iotest.TimeoutReader(bytes.NewReader(long)))}
	if _, err := Verify(Proof{}, half); err == nil {
		t.Error("a file that cannot be read to its end was verified")
	}
	if _, err := Verify(Proof{Key: []byte("short")}); err == nil {
		t.Error("a short key was taken")
	}
}

// FuzzVerify: whatever is under no key of ours, or is not a beginning of what was written, is never proven. The log is
// the same in every process that takes part.
func FuzzVerify(f *testing.F) {
	begin := link{chain: strings.Repeat("a", 32), previous: noHash}
	text, _ := forge(keyOfTests, begin, "0", "4", "8", "0")
	plain, _ := forge(nil, begin, "0", "4")
	lines := linesOf(text)
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Add(bytes.Join(append(lines[:2:2], lines[3:]...), nil))
	f.Add(bytes.Join([][]byte{lines[1], lines[0]}, nil))
	f.Add(plain)
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		proven := judge(t, Proof{Key: keyOfTests}, input).Problem == nil
		whole := len(input) > 0 && input[len(input)-1] == '\n' && bytes.HasPrefix(text, input)
		if proven != whole {
			t.Errorf("proven is %v: %q", proven, input)
		}
	})
}
