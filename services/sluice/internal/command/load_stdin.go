package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/sluice-fhir/sluice/services/sluice/internal/loader"
)

// findWithStdin is loader.Find, with the path "-" for standard input: a copy of it in a temporary folder, because a file
// may be read more than once. remove deletes the copy.
func findWithStdin(ctx context.Context, paths []string) (found loader.Found, remove func() error, err error) {
	at := slices.Index(paths, "-")
	if at < 0 {
		found, err = loader.Find(paths)
		return found, func() error { return nil }, err
	}
	if slices.Contains(paths[at+1:], "-") {
		return found, nil, usage("standard input is named twice")
	}
	dir, err := os.MkdirTemp("", "sluice-load-")
	if err != nil {
		return found, nil, fmt.Errorf("copy standard input: %w", err)
	}
	if found, err = copyStdin(ctx, paths, at, dir); err != nil {
		return found, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return found, func() error { return os.RemoveAll(dir) }, nil
}

// copyStdin returns the files of the paths. In the place of the at'th path it has a copy of standard input, which it makes
// in the empty folder.
func copyStdin(ctx context.Context, paths []string, at int, dir string) (found loader.Found, err error) {
	file, err := os.OpenFile(filepath.Join(dir, "stdin.ndjson"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return found, fmt.Errorf("copy standard input: %w", err)
	}
	paths = slices.Clone(paths)
	paths[at] = dir // as a folder: the path of the file is then free for its name in reports
	if found, err = loader.Find(paths); err != nil {
		return found, errors.Join(err, file.Close())
	}
	for i := range found.Files {
		if one := &found.Files[i]; one.Path == file.Name() {
			one.Path = "standard input"
			one.Size, err = drain(ctx, os.Stdin, file)
		}
	}
	if err != nil {
		return found, fmt.Errorf("copy standard input: %w", err)
	}
	return found, nil
}

// drain copies a stream into a file and closes it. It returns when ctx is done, even if the stream blocks.
func drain(ctx context.Context, from io.Reader, to *os.File) (int64, error) {
	var size int64 // set before copied is
	copied := make(chan error, 1)
	go func() {
		n, err := io.Copy(to, from)
		size = n
		copied <- errors.Join(err, to.Close())
	}()
	select {
	case err := <-copied:
		return size, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
