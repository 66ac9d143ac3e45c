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

// Verify reads every file of a finished folder again and compares it with manifest.json: digest, compression, number
// of lines, type of every line; and it looks for data files that the manifest does not know. It goes through all of
// the folder and returns all that is wrong; the report counts what is right.
func Verify(ctx context.Context, dir string) (report Report, err error) {
	folder, err := openFolder(dir)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	finished, err := folder.sealed()
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("%w: it has no %s: no finished export is in it", ErrFolder, manifestFile)
	}
	if err != nil {
		return Report{}, err
	}
	results, err := finished.results()
	if err != nil {
		return Report{}, err
	}
	var wrong error
	var right []result
	known := make(map[string]bool)
	for _, r := range results {
		known[r.stored.File] = true
		if err := verify(ctx, folder, r); err != nil {
			if ctx.Err() != nil {
				return Report{}, ctx.Err()
			}
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w", printable(r.stored.File), err))
			continue
		}
		right = append(right, r)
	}
	names, err := fs.ReadDir(folder.root.FS(), ".")
	if err != nil {
		return Report{}, fmt.Errorf("list the folder: %w", err)
	}
	for _, name := range names {
		if isData(name.Name()) && !known[name.Name()] {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %w: it is not in the manifest", printable(name.Name()), ErrMismatch))
		}
	}
	report = count(right)
	report.TransactionTime = finished.TransactionTime
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
	if err := check.Close(r.stored.Resources); err != nil {
		return err
	}
	if r.file.Count >= 0 && r.file.Count != check.count {
		return fmt.Errorf("%w: %d resources where the manifest lists %d", ErrMismatch, check.count, r.file.Count)
	}
	if length != r.stored.Bytes || hex.EncodeToString(sum.Sum(nil)) != r.stored.SHA256 {
		return fmt.Errorf("%w: it is not the file that was downloaded", ErrMismatch)
	}
	return nil
}
