package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// maxChains bounds Verify's memory: each chain takes a few hundred bytes.
const maxChains = 100_000

// Input is a part of a log, such as one of its files.
type Input struct {
	Name string
	io.Reader
}

// Proof holds the key and the hashes that a log is verified against.
type Proof struct {
	Key []byte // of the log; nil: none
	// Heads are hashes from earlier verifications that the log must contain. They prove that it was not shortened.
	Heads []string
	// After are hashes of lines in files that were deliberately removed. A chain may begin after one of them; any other
	// chain must begin with its first line.
	After []string
}

// Report is the result of Verify.
type Report struct {
	Lines   int64    `json:"lines"`
	Chains  []Chain  `json:"chains"` // in the order of their first lines
	Problem *Problem `json:"problem,omitempty"`
}

// Chain is the verified part of a chain, up to its first problem.
type Chain struct {
	ID      string    `json:"chain"`
	Process string    `json:"process"`
	Site    string    `json:"site,omitempty"`
	First   int64     `json:"first"` // sequence numbers
	Last    int64     `json:"last"`
	Lines   int64     `json:"lines"`
	From    time.Time `json:"from"` // time of the first line
	Until   time.Time `json:"until"`
	Head    string    `json:"head"` // hash of the last line
	// Unfinished: the chain ends without the event of a stop although the same process began another chain later. It was
	// killed, or lines at the end are missing.
	Unfinished bool `json:"unfinished,omitempty"`

	broken     bool
	begin, end int64 // numbers of the first and the last line, over all inputs
	stopped    bool  // the last line is the event of a stop
}

// Problem is the first problem of a log.
type Problem struct {
	File string `json:"file,omitempty"` // "" for missing lines at the end, or an empty log
	Line int64  `json:"line,omitempty"` // from 1
	Text string `json:"text"`
}

func (p Problem) Error() string {
	if p.File == "" {
		return p.Text
	}
	return fmt.Sprintf("%s, line %d: %s", p.File, p.Line, p.Text)
}

// Verify reads the inputs, oldest first, and verifies their chains. Lines of several chains may be mixed if each chain
// is in order. It holds one line and the heads of the chains in memory. It returns an error only when an input cannot
// be read; problems of the log are in the report.
func Verify(proof Proof, inputs ...Input) (Report, error) {
	if len(proof.Key) > 0 && len(proof.Key) < KeyBytes {
		return Report{}, fmt.Errorf("the key has %d bytes, want at least %d", len(proof.Key), KeyBytes)
	}
	v := verifier{
		hasher: newHasher(proof.Key), chains: map[string]int{}, missing: slices.Clone(proof.Heads), after: proof.After,
	}
	for _, input := range inputs {
		if err := v.read(input); err != nil {
			return Report{}, fmt.Errorf("read %s: %w", input.Name, err)
		}
	}
	v.report.Chains = slices.DeleteFunc(v.report.Chains, func(c Chain) bool { return c.Lines == 0 })
	v.markUnfinished()
	if v.report.Lines == 0 { // Open always records a line
		v.problem(Problem{Text: "the log is empty"})
	}
	for _, head := range v.missing {
		v.problem(Problem{Text: fmt.Sprintf("the line with the hash %s is missing: the log was shortened", head)})
	}
	return v.report, nil
}

// markUnfinished compares the chains of each process and site.
func (v *verifier) markUnfinished() {
	type writer struct{ process, site string }
	latest := map[writer]int64{} // where its last chain begins
	for _, c := range v.report.Chains {
		of := writer{c.Process, c.Site}
		latest[of] = max(latest[of], c.begin)
	}
	for i := range v.report.Chains {
		c := &v.report.Chains[i]
		c.Unfinished = !c.stopped && !c.broken && latest[writer{c.Process, c.Site}] > c.end
	}
}

type verifier struct {
	hasher  hasher
	chains  map[string]int // chain id to index in report.Chains
	missing []string       // heads that were not found yet
	after   []string
	report  Report
}

// problem records p unless there is an earlier problem.
func (v *verifier) problem(p Problem) {
	if v.report.Problem == nil {
		v.report.Problem = &p
	}
}

func (v *verifier) read(input Input) error {
	lines := bufio.NewReaderSize(input, LineLimit)
	for number := int64(1); ; number++ {
		text, err := lines.ReadSlice('\n')
		if len(text) == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		v.report.Lines++
		wrong := func(format string, args ...any) {
			v.problem(Problem{File: input.Name, Line: number, Text: fmt.Sprintf(format, args...)})
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			wrong("it is too long for an audit log line")
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		case errors.Is(err, io.EOF):
			wrong("it is incomplete: its end is missing")
		case err != nil:
			return err
		default:
			if err := v.line(text[:len(text)-1]); err != nil {
				wrong("%v", err)
			}
		}
	}
}

// line verifies one line without its line break.
func (v *verifier) line(text []byte) error {
	at, sum, err := v.hasher.open(text)
	if err != nil {
		return err
	}
	var event struct {
		Recorded time.Time `json:"recorded"`
		Subtype  []coding  `json:"subtype"`
		Source   struct {
			Site     string `json:"site"`
			Observer struct {
				Display string `json:"display"`
			} `json:"observer"`
		} `json:"source"`
	}
	if err := json.Unmarshal(text, &event); err != nil {
		return errors.New("not an AuditEvent")
	}
	index, known := v.chains[at.chain]
	if !known {
		if len(v.chains) == maxChains {
			return fmt.Errorf("it begins a new chain, and there are already %d", maxChains)
		}
		index = len(v.report.Chains)
		v.chains[at.chain] = index
		v.report.Chains = append(v.report.Chains, Chain{
			ID: at.chain, Process: event.Source.Observer.Display, Site: event.Source.Site,
			First: at.sequence, Last: at.sequence - 1, From: event.Recorded, Head: at.previous, begin: v.report.Lines,
		})
	}
	chain := &v.report.Chains[index]
	if chain.broken {
		return nil // already reported
	}
	if err := v.checkOrder(at, *chain, known); err != nil {
		chain.broken = true
		return err
	}
	chain.Last, chain.Until, chain.Head = at.sequence, event.Recorded, sum
	chain.Lines++
	chain.end = v.report.Lines
	chain.stopped = slices.Contains(event.Subtype, coding{System: sluiceActions, Code: string(Stop)})
	v.missing = slices.DeleteFunc(v.missing, func(head string) bool { return head == sum })
	return nil
}

// checkOrder returns an error unless the line continues the chain or may begin it.
func (v *verifier) checkOrder(at position, chain Chain, known bool) error {
	switch {
	case !known && at.sequence == 0 && at.previous == noHash:
	case !known && at.sequence > 0 && slices.Contains(v.after, at.previous):
	case !known:
		return fmt.Errorf("chain %s begins with number %d: the lines before it are missing", at.chain, at.sequence)
	case at.sequence <= chain.Last:
		return fmt.Errorf("number %d of chain %s comes after number %d", at.sequence, at.chain, chain.Last)
	case at.sequence > chain.Last+1:
		return fmt.Errorf("%d lines of chain %s before number %d are missing",
			at.sequence-chain.Last-1, at.chain, at.sequence)
	case at.previous != chain.Head:
		return fmt.Errorf("number %d of chain %s does not continue the previous line", at.sequence, at.chain)
	}
	return nil
}
