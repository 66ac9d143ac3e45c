package bulkclient

import (
	"bufio"
	"bytes"
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

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

// Report counts the files of a finished export. The names of its JSON do not change; more may come.
type Report struct {
	Job             string   `json:"job"`       // see Job.ID
	StatusURL       string   `json:"statusUrl"` // of the job; DELETE removes it
	Folder          string   `json:"folder"`
	TransactionTime string   `json:"transactionTime"`
	Request         Request  `json:"request"`                     // empty when the export was continued by its status URL
	Patients        int      `json:"patients,omitempty"`          // in the request
	Types           []Total  `json:"types"`                       // of output, by name; files of several types have ""
	Total           Total    `json:"total"`                       // of output; its seconds are those of the whole run
	OrganizedBy     string   `json:"outputOrganizedBy,omitempty"` // see Manifest
	Changes         *Changes `json:"changes,omitempty"`           // with Options.Last; Total is then of the whole copy
	Deleted         Total    `json:"deleted"`                     // files of deletions
	Errors          Total    `json:"errors"`                      // files of OperationOutcomes
	Incomplete      int64    `json:"incomplete"`                  // issues of the error files: data that could not be exported
	Withheld        int64    `json:"withheld"`                    // issues of severity information: left out by design
	Problems        []string `json:"problems"`                    // the first of Incomplete
	Notes           []string `json:"notes"`                       // the first of Withheld
	Warnings        []string `json:"warnings"`                    // about the manifest

	SignedBy  string   `json:"signedBy,omitempty"`  // only by Verify: kid of the key that signed the manifest; "": not signed
	Unchecked []string `json:"unchecked,omitempty"` // only by Verify: what could not be checked
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

func newReport(folder *folder, done finished, results []result) (Report, error) {
	report := count(results)
	report.describe(folder, done)
	report.Total.Seconds = done.Seconds
	for _, r := range results {
		if r.file.List != ListError {
			continue
		}
		if err := report.addOutcomes(folder, r.stored.File); err != nil {
			return Report{}, fmt.Errorf("read %s: %w", r.stored.File, err)
		}
	}
	return report, nil
}

// describe sets what the manifest.json tells.
func (r *Report) describe(folder *folder, done finished) {
	r.Job, r.StatusURL, r.Folder = done.Export.job().ID(), done.Export.StatusURL, folder.root.Name()
	r.Request, r.Patients = done.Export.Request, done.Export.Listed.Count
	r.OrganizedBy, r.Changes = done.OrganizedBy, done.Changes
	r.TransactionTime, r.Warnings = done.TransactionTime, append(r.Warnings, done.Warnings...)
}

func count(results []result) Report {
	report := Report{Types: []Total{}, Problems: []string{}, Notes: []string{}, Warnings: []string{}}
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

// addOutcomes adds the issues of an error file. Whatever is not an issue of severity information counts as missing data.
func (r *Report) addOutcomes(folder *folder, name string) (err error) {
	file, err := folder.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var in io.Reader = file
	if strings.HasSuffix(name, ".gz") {
		if in, err = gzip.NewReader(file); err != nil {
			return err
		}
	}
	lines := bufio.NewReaderSize(in, maxOutcome)
	for {
		line, err := lines.ReadSlice('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			r.addOutcome(line)
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a line whose begin is no OperationOutcome
			_, err = lines.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *Report) addOutcome(line []byte) {
	const most = 20
	found := issues(line)
	if len(found) == 0 {
		found = []fhir.Issue{{Diagnostics: "a line of the error file that is no OperationOutcome with issues, or is too long"}}
	}
	for _, issue := range found {
		if issue.Severity == "information" {
			r.Withheld++
			if len(r.Notes) < most {
				issue.Severity, issue.Code = "", ""
				r.Notes = append(r.Notes, describe(issue))
			}
			continue
		}
		r.Incomplete++
		if len(r.Problems) < most {
			r.Problems = append(r.Problems, describe(issue))
		}
	}
}

// Verify reads every file of a finished folder and compares it with manifest.json: digest, compression, number of
// lines, type of every line. It also reports data files that the manifest does not list. If the server signed its
// manifest, it checks the signature with a key set, and that manifest.json and every file are those of the signed
// manifest, whose numbers add up. jwks is a trusted key set, with which a signature is required; nil: that of the folder.
// It checks the whole folder, offline, and returns all errors joined; the report counts the valid files, and names what
// could not be checked.
func Verify(ctx context.Context, dir string, jwks []byte) (report Report, err error) {
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
	var signedBy string
	var unchecked []string
	unsigned := !done.Signed && jwks == nil
	switch {
	case unsigned && done.Changes != nil:
		unchecked = []string{"where the files are from: this client merged them from exports; the last changes are in the " +
			"folder " + changesDir + ", which can be verified by itself"}
	case unsigned:
		unchecked = []string{"where the files are from: the server did not sign its manifest"}
	default:
		proof, err := folder.signed(jwks)
		if err == nil {
			signedBy, unchecked, err = proof.check(done, results)
		}
		wrong = err
	}
	var valid []result
	unproven := 0
	listed := make(map[string]bool)
	for _, r := range results {
		listed[r.stored.File] = true
		proven, err := verify(ctx, folder, r, linesOf(r.file, r.stored.Resources))
		if err != nil {
			if ctx.Err() != nil {
				return Report{}, ctx.Err()
			}
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w", printable(r.stored.File), err))
			continue
		}
		valid = append(valid, r)
		if !proven && !unsigned {
			unproven++
		}
	}
	if unproven > 0 {
		unchecked = append(unchecked, "whether the text of "+plural.Of(unproven, "file")+" has the signed digest, which is of "+
			"the compressed form: another version compressed it (--keep-gzip keeps that form)")
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
	report.describe(folder, done)
	report.SignedBy, report.Unchecked = signedBy, unchecked
	return report, wrong
}

// verify checks one file with a check of its lines. It reports whether the file has the digest of the manifest; a text is
// compressed for that.
func verify(ctx context.Context, folder *folder, r result, check *lines) (proven bool, err error) {
	file, err := folder.root.Open(r.stored.File)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: it is missing", ErrMismatch)
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	zipped := strings.HasSuffix(r.stored.File, ".gz")
	sum, length := sha256.New(), int64(0)
	zip, zipSum := io.Discard, sum
	var compress gzipblocks.Writer
	proven = r.file.Digest != nil && (zipped || r.file.Digest.Encoder == gzipblocks.Encoder)
	if proven && !zipped {
		zip, zipSum = &compress, sha256.New()
		if err := compress.Reset(zipSum); err != nil {
			return false, err
		}
	}
	err = decode(bufio.NewReaderSize(io.TeeReader(file, sum), 128<<10), zipped, func(piece []byte) error {
		length += int64(len(piece))
		_, err1 := check.Write(piece)
		_, err2 := zip.Write(piece)
		return errors.Join(err1, err2, ctx.Err())
	})
	if err == nil {
		err = check.Close()
	}
	if err == nil && zipSum != sum {
		err = compress.Close()
	}
	if err != nil {
		return false, err
	}
	if r.file.Count >= 0 && !check.is(r.file.Count) {
		return false, fmt.Errorf("%w: it has %d resources, not %d", ErrMismatch, check.resources(), r.file.Count)
	}
	if length != r.stored.Bytes || hex.EncodeToString(sum.Sum(nil)) != r.stored.SHA256 {
		return false, fmt.Errorf("%w: its content has changed since the download", ErrMismatch)
	}
	if proven && hex.EncodeToString(zipSum.Sum(nil)) != r.file.Digest.SHA256 {
		return false, fmt.Errorf("%w: it is not the file of the manifest", ErrMismatch)
	}
	return proven, nil
}
