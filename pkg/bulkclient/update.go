package bulkclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// changesDir is the folder in an up-to-date copy that holds the export of what changed: a folder as of any export.
const changesDir = "changes"

// Changes counts what brought a copy up to date. The JSON is part of a Report.
type Changes struct {
	Since     string `json:"since"`     // transactionTime of the last export
	Resources int64  `json:"resources"` // new or changed
	Deletions int64  `json:"deletions"` // resources that the server reported as deleted
	Removed   int64  `json:"removed"`   // lines of the last export that are not in the copy: changed or deleted resources
}

// update exports what changed since the export in Options.Last and merges both into the folder. Only the merge writes to
// the folder itself, and its manifest.json comes last; until then the folder is unfinished, and the merge starts over.
func (c *Client) update(ctx context.Context, request Request, opts Options) (report Report, err error) {
	begin := time.Now()
	if err := continuable(request, opts); err != nil {
		return Report{}, err
	}
	last, err := openFolder(opts.Last)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrLast, err)
	}
	defer func() { err = errors.Join(err, last.Close()) }()
	want := c.wanted(request, opts)
	base, sum, err := last.continuedBy(want)
	if err != nil {
		return Report{}, err
	}
	want.Last = sum

	return intoFolder(opts, want, func(folder *folder) (report Report, err error) {
		_, missing := folder.root.Stat(changesDir)
		switch {
		case missing != nil:
			if err := folder.mustBeEmpty(); err != nil {
				return Report{}, err
			}
		case !opts.Resume:
			return Report{}, errUnfinished
		}
		request.Since = base.TransactionTime
		inner := opts
		inner.Dir, inner.Last, inner.last = filepath.Join(opts.Dir, changesDir), "", sum
		if _, err := c.Export(ctx, request, inner); err != nil {
			return Report{}, err
		}
		changes, err := openFolder(inner.Dir)
		if err != nil {
			return Report{}, err
		}
		defer func() { err = errors.Join(err, changes.Close()) }()
		m := &merge{last: last, changes: changes, folder: folder, zip: opts.KeepGzip, base: base, parallel: c.cfg.Parallel}
		done, results, err := m.run(ctx)
		if err != nil {
			return Report{}, fmt.Errorf("merge the changes: %w", err)
		}
		done.Export.Request, done.Export.Last, done.Seconds = want.Request, sum, time.Since(begin).Seconds()
		if err := folder.save(manifestFile, done); err != nil {
			return Report{}, err
		}
		return newReport(folder, done, results)
	})
}

// continuable returns ErrLast if the changes of a request do not tell what its whole export would have.
func continuable(request Request, opts Options) error {
	last, lastErr := os.Stat(opts.Last)
	dir, dirErr := os.Stat(opts.Dir)
	switch {
	case lastErr == nil && dirErr == nil && os.SameFile(last, dir):
		return fmt.Errorf("%w: it is in the output folder itself", ErrLast)
	case request.Since != "" || request.Until != "" || opts.StatusURL != "":
		return fmt.Errorf("%w by an export with a window of its own, or of an existing job", ErrLast)
	case request.OrganizeBy != "":
		return fmt.Errorf("%w by files in blocks", ErrLast)
	case request.Associated == export.LatestProvenance:
		return fmt.Errorf("%w: which Provenance is no longer the latest is not exported", ErrLast)
	}
	return nil
}

// continuedBy returns the manifest of the folder and the SHA-256 of its file, in hex. It returns ErrLast unless the
// folder has all data of a request, and that is the wanted one.
func (f *folder) continuedBy(want state) (finished, string, error) {
	done, err := f.finished()
	if errors.Is(err, fs.ErrNotExist) {
		return done, "", fmt.Errorf("%w: the folder has no %s, so it holds no finished export", ErrLast, manifestFile)
	}
	if err != nil {
		return done, "", fmt.Errorf("%w: %w", ErrLast, err)
	}
	text, err := f.root.ReadFile(manifestFile)
	if err != nil {
		return done, "", fmt.Errorf("read %s: %w", manifestFile, err)
	}
	_, malformed := time.Parse(time.RFC3339Nano, done.TransactionTime)
	switch {
	case done.Export.Since != "":
		return done, "", fmt.Errorf("%w: the folder holds only what changed after an instant", ErrLast)
	case !done.Export.follows(want):
		return done, "", fmt.Errorf("%w: the base URL, level, group or parameters are not those of the export in the folder",
			ErrLast)
	case malformed != nil:
		return done, "", fmt.Errorf("%w: the transactionTime of its manifest is not an instant", ErrLast)
	case done.OrganizedBy != "":
		return done, "", fmt.Errorf("%w: its files are in blocks", ErrLast)
	}
	sum := sha256.Sum256(text)
	return done, hex.EncodeToString(sum[:]), nil
}
