package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

const ceilingPrefix = "ceiling/"

// ceiling writes every file of the folder gzipped into the store, so many at once, and returns the bytes read. It is what
// the machine can do when nobody plans, selects, checks or counts.
func ceiling(ctx context.Context, store *objects.Store, dir string, atOnce int) (int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson"))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no plain NDJSON in the folder: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	read := make([]int64, len(files))
	for i, name := range files {
		group.Go(func() (err error) {
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, file.Close()) }()
			object := store.Create(ctx, ceilingPrefix+filepath.Base(name)+".gz", "application/fhir+ndjson")
			zip, err := gzip.NewWriterLevel(object, gzip.BestSpeed)
			if err != nil {
				return err
			}
			if read[i], err = io.CopyBuffer(zip, file, make([]byte, 1<<20)); err == nil {
				err = zip.Close()
			}
			if err != nil {
				return errors.Join(err, object.Abort())
			}
			_, err = object.Commit()
			return err
		})
	}
	err = group.Wait()
	var total int64
	for _, n := range read {
		total += n
	}
	return total, err
}
