package bulkclient

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Report is what an export brought home.
type Report struct {
	TransactionTime string   `json:"transactionTime"`
	Types           []Total  `json:"types"`    // of output, by name
	Total           Total    `json:"total"`    // of output; its seconds are those of the whole run
	Deleted         Total    `json:"deleted"`  // files of deletions
	Errors          Total    `json:"errors"`   // files of OperationOutcomes
	Problems        []string `json:"problems"` // what the server could not produce, the first few in its words
}

// Total counts files.
type Total struct {
	Type      string  `json:"type,omitempty"`
	Files     int     `json:"files"`
	Resources int64   `json:"resources"`
	Bytes     int64   `json:"bytes"`   // without compression
	Seconds   float64 `json:"seconds"` // from the first download's begin to the last one's end, in this run
}

func (t *Total) add(s Stored) {
	t.Files++
	t.Resources += s.Resources
	t.Bytes += s.Bytes
}

func makeReport(folder *folder, transactionTime string, results []result, seconds float64) (Report, error) {
	report := count(results)
	report.TransactionTime, report.Total.Seconds = transactionTime, seconds
	var err error
	report.Problems, err = problems(folder, results)
	return report, err
}

func count(results []result) Report {
	report := Report{Types: []Total{}, Problems: []string{}}
	byType := make(map[string][]result)
	for _, r := range results {
		switch r.file.List {
		case Errors:
			report.Errors.add(r.stored)
		case Deleted:
			report.Deleted.add(r.stored)
		default:
			report.Total.add(r.stored)
			byType[r.file.Type] = append(byType[r.file.Type], r)
		}
	}
	for typ, rows := range byType {
		total := Total{Type: typ}
		var begin, end time.Time
		for _, r := range rows {
			total.add(r.stored)
			if !r.begin.IsZero() && (begin.IsZero() || r.begin.Before(begin)) {
				begin = r.begin
			}
			if r.end.After(end) {
				end = r.end
			}
		}
		total.Seconds = end.Sub(begin).Seconds()
		report.Types = append(report.Types, total)
	}
	slices.SortFunc(report.Types, func(a, b Total) int { return strings.Compare(a.Type, b.Type) })
	return report
}

// problems reads the beginning of the error files: the first sentences tell most.
func problems(folder *folder, results []result) ([]string, error) {
	const most = 20
	found := []string{}
	for _, r := range results {
		if r.file.List != Errors || len(found) >= most {
			continue
		}
		sentences, err := problemsOf(folder, r.stored.File, most-len(found))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", r.stored.File, err)
		}
		found = append(found, sentences...)
	}
	return found, nil
}

func problemsOf(folder *folder, name string, most int) (found []string, err error) {
	file, err := folder.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var in io.Reader = file
	if strings.HasSuffix(name, ".gz") {
		if in, err = gzip.NewReader(file); err != nil {
			return nil, err
		}
	}
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxOutcome)
	for len(found) < most && scanner.Scan() {
		for _, issue := range issues(scanner.Bytes()) {
			found = append(found, Sentence(issue))
		}
	}
	if err := scanner.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) { // a long one is told by its file
		return nil, err
	}
	return found[:min(len(found), most)], nil
}
