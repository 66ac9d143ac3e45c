package bulkclient

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Report counts the files of a finished export.
type Report struct {
	TransactionTime string   `json:"transactionTime"`
	Types           []Total  `json:"types"`    // of output, by name
	Total           Total    `json:"total"`    // of output; its seconds are those of the whole run
	Deleted         Total    `json:"deleted"`  // files of deletions
	Errors          Total    `json:"errors"`   // files of OperationOutcomes
	Problems        []string `json:"problems"` // the first issues of the error files
}

// Total counts files.
type Total struct {
	Type      string  `json:"type,omitempty"`
	Files     int     `json:"files"`
	Resources int64   `json:"resources"`
	Bytes     int64   `json:"bytes"`   // uncompressed
	Seconds   float64 `json:"seconds"` // from the start of the first download to the end of the last, in this run
}

func (t *Total) add(s StoredFile) {
	t.Files++
	t.Resources += s.Resources
	t.Bytes += s.Bytes
}

func newReport(folder *folder, transactionTime string, results []result, seconds float64) (Report, error) {
	report := count(results)
	report.TransactionTime, report.Total.Seconds = transactionTime, seconds
	var err error
	report.Problems, err = problems(folder, results)
	return report, err
}

func count(results []result) Report {
	report := Report{Types: []Total{}, Problems: []string{}}
	type typeTotal struct {
		Total
		begin, end time.Time // of the downloads of this run
	}
	types := make(map[string]*typeTotal)
	for _, r := range results {
		switch r.file.List {
		case ListError:
			report.Errors.add(r.stored)
			continue
		case ListDeleted:
			report.Deleted.add(r.stored)
			continue
		}
		report.Total.add(r.stored)
		one := types[r.file.Type]
		if one == nil {
			one = &typeTotal{Total: Total{Type: r.file.Type}, begin: r.begin}
			types[r.file.Type] = one
		}
		one.add(r.stored)
		if one.begin.IsZero() || !r.begin.IsZero() && r.begin.Before(one.begin) {
			one.begin = r.begin
		}
		if r.end.After(one.end) {
			one.end = r.end
		}
	}
	for _, typ := range slices.Sorted(maps.Keys(types)) {
		one := types[typ]
		one.Seconds = one.end.Sub(one.begin).Seconds()
		report.Types = append(report.Types, one.Total)
	}
	return report
}

func problems(folder *folder, results []result) ([]string, error) {
	const most = 20
	found := []string{}
	for _, r := range results {
		if r.file.List != ListError || len(found) >= most {
			continue
		}
		texts, err := problemsOf(folder, r.stored.File, most-len(found))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", r.stored.File, err)
		}
		found = append(found, texts...)
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
			found = append(found, describe(issue))
		}
	}
	if err := scanner.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) { // a long line is in the file itself
		return nil, err
	}
	return found[:min(len(found), most)], nil
}

// Verify reads every file of a finished folder and compares it with manifest.json: digest, compression, number of
// lines, type of every line. It also reports data files that the manifest does not list. It checks the whole folder
// and returns all errors joined; the report counts the valid files.
func Verify(ctx context.Context, dir string) (report Report, err error) {
	folder, err := openFolder(dir)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	done, err := folder.finished()
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("%w: it has no %s, so it holds no finished export", ErrFolder, manifestFile)
	}
	if err != nil {
		return Report{}, err
	}
	results, err := done.results()
	if err != nil {
		return Report{}, err
	}
	var wrong error
	var valid []result
	listed := make(map[string]bool)
	for _, r := range results {
		listed[r.stored.File] = true
		if err := verify(ctx, folder, r); err != nil {
			if ctx.Err() != nil {
				return Report{}, ctx.Err()
			}
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w", printable(r.stored.File), err))
			continue
		}
		valid = append(valid, r)
	}
	entries, err := fs.ReadDir(folder.root.FS(), ".")
	if err != nil {
		return Report{}, fmt.Errorf("list the folder: %w", err)
	}
	for _, entry := range entries {
		if name := entry.Name(); isData(name) && !listed[name] {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w: it is not in the manifest", printable(name), ErrMismatch))
		}
	}
	report = count(valid)
	report.TransactionTime = done.TransactionTime
	return report, wrong
}

func verify(ctx context.Context, folder *folder, r result) (err error) {
	file, err := folder.root.Open(r.stored.File)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it is missing", ErrMismatch)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	encoding := ""
	if strings.HasSuffix(r.stored.File, ".gz") {
		encoding = "gzip"
	}
	sum, check, length := sha256.New(), newLines(r.file.Type), int64(0)
	err = decode(io.TeeReader(file, sum), encoding, func(piece []byte) error {
		length += int64(len(piece))
		if _, err := check.Write(piece); err != nil {
			return err
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := errors.Join(check.Close(r.stored.Resources), check.Close(r.file.Count)); err != nil {
		return err
	}
	if length != r.stored.Bytes || hex.EncodeToString(sum.Sum(nil)) != r.stored.SHA256 {
		return fmt.Errorf("%w: its content has changed since the download", ErrMismatch)
	}
	return nil
}
