package bulkclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

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
