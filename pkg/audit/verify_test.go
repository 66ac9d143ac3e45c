package audit

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// sample is a log of two processes with mixed lines.
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

// judge verifies a text.
func judge(t testing.TB, proof Proof, text []byte) Report {
	t.Helper()
	report, err := Verify(proof, Input{"log", bytes.NewReader(text)})
	must(t, err)
	return report
}

func TestVerify(t *testing.T) {
	for _, key := range [][]byte{nil, testKey} {
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
	empty := judge(t, Proof{Key: testKey}, nil)
	if empty.Problem == nil || empty.Problem.Error() != "the log is empty" || len(empty.Chains) != 0 {
		t.Errorf("nothing: %+v", empty)
	}
}

// A whole chain behind a shortened one of the same process does not hide that lines are missing (P19).
func TestAChainWithoutAStopIsNamed(t *testing.T) {
	chain := func(process, site string) [][]byte {
		cfg := config(logFile(t))
		cfg.Process, cfg.Site = process, site
		l := mustOpen(t, cfg, openHandle)
		mustRecord(t, l, download(), download())
		mustClose(t, l)
		return linesOf(content(t, cfg.Path)) // start, two downloads, stop
	}
	first, second, third := chain("api", "a"), chain("api", "a"), chain("api", "a")
	elsewhere, scheduler := chain("api", "b"), chain("scheduler", "a")
	for name, test := range map[string]struct {
		parts [][][]byte
		want  []bool
	}{
		"whole chains":                     {[][][]byte{first, second}, []bool{false, false}},
		"cut, and nothing behind":          {[][][]byte{first[:3]}, []bool{false}},
		"cut, and a whole one behind":      {[][][]byte{first[:3], second}, []bool{true, false}},
		"only its start is left":           {[][][]byte{first[:1], second}, []bool{true, false}},
		"two are cut":                      {[][][]byte{first[:3], second[:2], third[:3]}, []bool{true, true, false}},
		"another site behind":              {[][][]byte{first[:3], elsewhere}, []bool{false, false}},
		"another process behind":           {[][][]byte{first[:3], scheduler}, []bool{false, false}},
		"at the same time":                 {[][][]byte{first[:2], second[:2], first[2:3], second[2:]}, []bool{false, false}},
		"one ends while the other goes on": {[][][]byte{first[:2], second[:2], first[2:], second[2:3]}, []bool{false, false}},
	} {
		var text []byte
		for _, part := range test.parts {
			text = append(text, bytes.Join(part, nil)...)
		}
		report := judge(t, Proof{Key: testKey}, text)
		if report.Problem != nil || len(report.Chains) != len(test.want) {
			t.Fatalf("%s: %+v", name, report)
		}
		for i, want := range test.want {
			if got := report.Chains[i].Unfinished; got != want {
				t.Errorf("%s: chain %d unfinished %v, want %v", name, i, got, want)
			}
		}
	}
}

// Every altered byte is detected: each byte of a line, and some hundreds in a log of two chains.
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
	for _, key := range [][]byte{nil, testKey} {
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

// TestTampering alters each line of a log.
func TestTampering(t *testing.T) {
	text := sample(t, testKey)
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
		shows := i + 2 // a removed line is detected at the next line of its chain
		if i+2 >= len(lines) {
			shows = 0 // the last line of its chain
		}
		for name, tc := range map[string]struct {
			text    []byte
			line    int // of the problem, from 1; 0: none
			wantErr string
		}{
			"removed":            {join(lines[:i], lines[i+1:]), shows, "missing"},
			"repeated":           {join(lines[:i+1], one, lines[i+1:]), i + 2, "comes after number"},
			"at the end":         {join(lines, one), 13, "comes after number"},
			"garbage":            {join(lines[:i], [][]byte{[]byte("{}\n")}, lines[i:]), i + 1, "not an audit log line"},
			"blank":              {join(lines[:i], [][]byte{[]byte("\n")}, lines[i:]), i + 1, "not an audit log line"},
			"huge":               {join(lines[:i], [][]byte{bytes.Repeat([]byte("x"), 3*LineLimit), []byte("\n")}, lines[i:]), i + 1, "too long"},
			"shortened":          {join(lines[:i], [][]byte{one[0][:200], []byte("\n")}, lines[i+1:]), i + 1, "missing or damaged"},
			"cut short":          {join(lines[:i], [][]byte{one[0][:200]}), i + 1, "its end is missing"},
			"with a byte before": {join(lines[:i], [][]byte{[]byte(" ")}, lines[i:]), i + 1, "not an audit log line"},
			"with a byte behind": {join(lines[:i], [][]byte{one[0][:len(one[0])-1], []byte(" \n")}, lines[i+1:]), i + 1, "missing or damaged"},
		} {
			report := judge(t, Proof{Key: testKey}, tc.text)
			switch p := report.Problem; {
			case p == nil && tc.line != 0, p != nil && (p.Line != int64(tc.line) || !strings.Contains(p.Text, tc.wantErr)):
				t.Errorf("line %d %s: %v, want line %d and %q", i+1, name, p, tc.line, tc.wantErr)
			}
		}
		if i+2 < len(lines) { // swapped with the next line of its chain
			swapped := join(lines[:i], lines[i+2:i+3], lines[i+1:i+2], one, lines[i+3:])
			if report := judge(t, Proof{Key: testKey}, swapped); report.Problem == nil {
				t.Errorf("lines %d and %d swapped: no problem reported", i+1, i+3)
			}
		}
	}
	// The order of lines from different chains does not matter.
	if report := judge(t, Proof{Key: testKey}, join(lines[1:2], lines[:1], lines[2:])); report.Problem != nil {
		t.Error(report.Problem)
	}
}

// forge creates or continues a chain with a line for each outcome.
func forge(key []byte, at position, outcomes ...string) (text []byte, next position) {
	for _, outcome := range outcomes {
		line, sum := newHasher(key).seal([]byte(`{"resourceType":"AuditEvent","outcome":"`+outcome+`"}`), at)
		text, at = append(text, line...), at.next(sum)
	}
	return text, at
}

// A chain without a key can be recomputed; joined parts of two chains are detected.
func TestForging(t *testing.T) {
	begin := newChain()
	plain, _ := forge(nil, begin, "0", "0")
	keyed, next := forge(testKey, begin, "0", "0")
	other, _ := forge(testKey, begin, "4", "4", "4")
	more, _ := forge(testKey, next, "8")
	late, _ := forge(testKey, position{chain: begin.chain, sequence: 1, previous: noHash}, "0")
	unjson, _ := newHasher(testKey).seal([]byte(`{"resourceType":"AuditEvent",nonsense}`), newChain())
	for name, tc := range map[string]struct {
		key     []byte
		text    []byte
		wantErr string // "" for a valid log
	}{
		"plain, no key":           {nil, plain, ""},
		"plain, key":              {testKey, plain, "without a key, and a key is given"},
		"keyed, no key":           {nil, keyed, "under a key, and no key is given"},
		"keyed, another key":      {bytes.Repeat([]byte("k"), 32), keyed, "altered, or was written under another key"},
		"keyed":                   {testKey, append(bytes.Clone(keyed), more...), ""},
		"the tail of another":     {testKey, append(bytes.Clone(keyed), linesOf(other)[2]...), "does not continue"},
		"a later beginning":       {testKey, late, "the lines before it are missing"},
		"a plain line in a keyed": {testKey, append(bytes.Clone(keyed), plain...), "without a key"},
		"what is no JSON":         {testKey, unjson, "not an AuditEvent"},
	} {
		report := judge(t, Proof{Key: tc.key}, tc.text)
		switch p := report.Problem; {
		case tc.wantErr == "" && p != nil, tc.wantErr != "" && (p == nil || !strings.Contains(p.Text, tc.wantErr)):
			t.Errorf("%s: %v, want %q", name, p, tc.wantErr)
		}
	}
}

// Missing lines at the end are detected only with a stored head.
func TestTailTruncation(t *testing.T) {
	text := sample(t, testKey)
	lines := linesOf(text)
	heads := judge(t, Proof{Key: testKey}, text).Chains
	for cut := 1; cut < len(lines); cut++ {
		shorter := bytes.Join(lines[:len(lines)-cut], nil)
		if report := judge(t, Proof{Key: testKey}, shorter); report.Problem != nil {
			t.Fatalf("%d lines fewer: %v: want no problem without a head", cut, report.Problem)
		}
		report := judge(t, Proof{Key: testKey, Heads: []string{heads[0].Head, heads[1].Head}}, shorter)
		if p := report.Problem; p == nil || p.File != "" || !strings.Contains(p.Error(), "the log was shortened") {
			t.Errorf("%d lines fewer: %v", cut, report.Problem)
		}
	}
	// An earlier head is part of the longer log.
	earlier := judge(t, Proof{Key: testKey}, bytes.Join(lines[:5], nil)).Chains
	if report := judge(t, Proof{Key: testKey, Heads: []string{earlier[0].Head, earlier[1].Head}}, text); report.Problem != nil {
		t.Error(report.Problem)
	}
	// The hash of an unverified line, here after a gap, does not count as a head.
	gap := bytes.Join(append(lines[:4:4], lines[6:]...), nil)
	report, err := Verify(Proof{Key: testKey, Heads: []string{heads[0].Head}}, Input{"log", bytes.NewReader(gap)})
	if err != nil || len(report.Chains) != 2 || report.Chains[0].Last != 1 || report.Chains[0].Lines != 2 {
		t.Errorf("%v, %+v: want both chains verified up to the gap", err, report)
	}
}

func TestVerifyFails(t *testing.T) {
	if _, err := Verify(Proof{}, Input{"log", iotest.ErrReader(errDisk)}); err == nil || !strings.Contains(err.Error(), "read log: no space") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	long := append(bytes.Repeat([]byte("x"), 2*LineLimit), "\n{}"...)
	half := Input{"log", iotest.DataErrReader(iotest.TimeoutReader(bytes.NewReader(long)))}
	if _, err := Verify(Proof{}, half); err == nil {
		t.Error("a file that cannot be read to its end was verified")
	}
	if _, err := Verify(Proof{Key: []byte("short")}); err == nil {
		t.Error("a short key was accepted")
	}
}

// FuzzVerify: only prefixes of the fixed log verify without a problem.
func FuzzVerify(f *testing.F) {
	begin := position{chain: strings.Repeat("a", 32), previous: noHash}
	text, _ := forge(testKey, begin, "0", "4", "8", "0")
	plain, _ := forge(nil, begin, "0", "4")
	lines := linesOf(text)
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Add(bytes.Join(append(lines[:2:2], lines[3:]...), nil))
	f.Add(bytes.Join([][]byte{lines[1], lines[0]}, nil))
	f.Add(plain)
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		proven := judge(t, Proof{Key: testKey}, input).Problem == nil
		whole := len(input) > 0 && input[len(input)-1] == '\n' && bytes.HasPrefix(text, input)
		if proven != whole {
			t.Errorf("proven is %v: %q", proven, input)
		}
	})
}
