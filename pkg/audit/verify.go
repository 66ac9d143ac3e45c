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

// chainsMost bounds what Verify holds in memory: it keeps a few hundred bytes of each chain.
const chainsMost = 100_000

// Part is a piece of a log, such as one of its files.
type Part struct {
	Name string
	io.Reader
}

// Proof says what a log is compared with.
type Proof struct {
	Key []byte // that the log was written under; nil: none
	// Heads are hashes that the log must hold, noted from earlier verifications. They show that it was not shortened.
	Heads []string
	// After are hashes of lines whose followers may be the first of their chains, because the files before were
	// removed on purpose. Without them every chain has to begin at its beginning.
	After []string
}

// Report is what Verify found.
type Report struct {
	Lines   int64    `json:"lines"`
	Chains  []Chain  `json:"chains"` // in the order in which they begin
	Problem *Problem `json:"problem,omitempty"`
}

// Chain is the part of one chain that is proven: up to its first problem.
type Chain struct {
	ID      string    `json:"chain"`
	Process string    `json:"process"`
	Site    string    `json:"site,omitempty"`
	First   int64     `json:"first"` // sequence numbers
	Last    int64     `json:"last"`
	Lines   int64     `json:"lines"`
	From    time.Time `json:"from"` // when its first line was recorded
	Until   time.Time `json:"until"`
	Head    string    `json:"head"` // hash of its last line

	broken bool
}

// Problem is the first thing that is wrong.
type Problem struct {
	File string `json:"file,omitempty"` // "" when it is in no line: lines are missing at the end, or all of them
	Line int64  `json:"line,omitempty"` // from 1
	Text string `json:"text"`
}

func (p Problem) Error() string {
	if p.File == "" {
		return p.Text
	}
	return fmt.Sprintf("%s, line %d: %s", p.File, p.Line, p.Text)
}

// Verify reads the parts of a log, oldest first, and proves their chains. Lines of several chains may be mixed, as long
// as each chain is in order. It holds one line and the heads of the chains in memory. It fails only when a part cannot
// be read; everything that is wrong with the log is the report's Problem.
func Verify(proof Proof, parts ...Part) (Report, error) {
	if len(proof.Key) > 0 && len(proof.Key) < KeyBytes {
		return Report{}, fmt.Errorf("the key has %d bytes, and no log is under one of less than %d", len(proof.Key), KeyBytes)
	}
	v := verifier{
		hashes: newHashing(proof.Key), chains: map[string]int{}, missing: slices.Clone(proof.Heads), after: proof.After,
	}
	for _, part := range parts {
		if err := v.read(part); err != nil {
			return Report{}, fmt.Errorf("read %s: %w", part.Name, err)
		}
	}
	v.report.Chains = slices.DeleteFunc(v.report.Chains, func(c Chain) bool { return c.Lines == 0 })
	if v.report.Lines == 0 { // opening a log records that
		v.problem(Problem{Text: "there are no lines in it"})
	}
	for _, head := range v.missing {
		v.problem(Problem{Text: fmt.Sprintf("the line with the hash %s is not there: the log was shortened", head)})
	}
	return v.report, nil
}

type verifier struct {
	hashes  hashing
	chains  map[string]int // places in the report
	missing []string       // heads that were not met yet
	after   []string
	report  Report
}

// problem keeps the first one.
func (v *verifier) problem(p Problem) {
	if v.report.Problem == nil {
		v.report.Problem = &p
	}
}

func (v *verifier) read(part Part) error {
	lines := bufio.NewReaderSize(part, LineLimit)
	for number := int64(1); ; number++ {
		text, err := lines.ReadSlice('\n')
		if len(text) == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		v.report.Lines++
		wrong := func(format string, args ...any) {
			v.problem(Problem{File: part.Name, Line: number, Text: fmt.Sprintf(format, args...)})
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			wrong("it is longer than a line can be")
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		case errors.Is(err, io.EOF):
			wrong("it is not whole: its end is missing")
		case err != nil:
			return err
		default:
			if err := v.line(text[:len(text)-1]); err != nil {
				wrong("%v", err)
			}
		}
	}
}

// line proves one line, without its line break.
func (v *verifier) line(text []byte) error {
	at, sum, err := v.hashes.open(text)
	if err != nil {
		return err
	}
	var event struct {
		Recorded time.Time `json:"recorded"`
		Source   struct {
			Site     string `json:"site"`
			Observer struct {
				Display string `json:"display"`
			} `json:"observer"`
		} `json:"source"`
	}
	if err := json.Unmarshal(text, &event); err != nil {
		return errors.New("it is no AuditEvent")
	}
	place, known := v.chains[at.chain]
	if !known {
		if len(v.chains) == chainsMost {
			return fmt.Errorf("it begins another chain, and there are %d already", chainsMost)
		}
		place = len(v.report.Chains)
		v.chains[at.chain] = place
		v.report.Chains = append(v.report.Chains, Chain{
			ID: at.chain, Process: event.Source.Observer.Display, Site: event.Source.Site,
			First: at.sequence, Last: at.sequence - 1, From: event.Recorded, Head: at.previous,
		})
	}
	chain := &v.report.Chains[place]
	if chain.broken {
		return nil // which was said where it broke
	}
	if err := v.follows(at, *chain, known); err != nil {
		chain.broken = true
		return err
	}
	chain.Last, chain.Until, chain.Head = at.sequence, event.Recorded, sum
	chain.Lines++
	v.missing = slices.DeleteFunc(v.missing, func(head string) bool { return head == sum })
	return nil
}

// follows tells whether a line continues the chain, or may begin it.
func (v *verifier) follows(at link, chain Chain, known bool) error {
	switch {
	case !known && at.sequence == 0 && at.previous == noHash:
	case !known && at.sequence > 0 && slices.Contains(v.after, at.previous):
	case !known:
		return fmt.Errorf("the chain %s begins with number %d: the lines before it are missing", at.chain, at.sequence)
	case at.sequence <= chain.Last:
		return fmt.Errorf("number %d of the chain %s comes after number %d", at.sequence, at.chain, chain.Last)
	case at.sequence > chain.Last+1:
		return fmt.Errorf("%d lines of the chain %s before number %d are missing",
			at.sequence-chain.Last-1, at.chain, at.sequence)
	case at.previous != chain.Head:
		return fmt.Errorf("number %d of the chain %s does not follow the line before it", at.sequence, at.chain)
	}
	return nil
}
