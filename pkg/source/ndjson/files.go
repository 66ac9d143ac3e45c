package ndjson

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// blockSize is the size of a read in bytes.
const blockSize = 1 << 20

// file is one file of the folder, open until the source is closed.
type file struct {
	name     string   // relative to the folder, with slashes
	origin   *os.File // in the folder
	spool    *os.File // the decompressed text of a gzipped file, else nil
	size     int64    // of origin when it was opened
	modified time.Time
}

// openFiles opens every file of the folder, sorted by name.
func openFiles(dir string) (files []*file, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.close())
			}
			files = nil
		}
	}()
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".") && path != dir
		if d.IsDir() {
			if hidden {
				return fs.SkipDir
			}
			return nil
		}
		if hidden || !strings.HasSuffix(path, ".ndjson") && !strings.HasSuffix(path, ".ndjson.gz") {
			return nil
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path) // a link is followed
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		origin, err := os.Open(path)
		if err != nil {
			return err
		}
		f := &file{name: filepath.ToSlash(relative), origin: origin}
		files = append(files, f)
		if info, err = origin.Stat(); err != nil {
			return err
		}
		f.size, f.modified = info.Size(), info.ModTime()
		if len(files) > maxFiles || f.size > placeMask {
			return fmt.Errorf("more than %d files or %d bytes in one of them", maxFiles, int64(placeMask))
		}
		return nil
	})
	slices.SortFunc(files, func(a, b *file) int { return strings.Compare(a.name, b.name) })
	return files, err
}

func (f *file) close() error {
	err := f.origin.Close()
	if f.spool != nil {
		err = errors.Join(err, f.spool.Close())
	}
	return err
}

// unchanged returns an error when the file was changed after it was opened.
func (f *file) unchanged() error {
	info, err := f.origin.Stat()
	if err != nil {
		return fmt.Errorf("%w: stat %s: %w", export.ErrUnavailable, f.name, err)
	}
	if info.Size() != f.size || !info.ModTime().Equal(f.modified) {
		return f.changed()
	}
	return nil
}

func (f *file) changed() error {
	return fmt.Errorf("%w: %s changed after it was indexed", export.ErrUnavailable, f.name)
}

// readAt reads len(p) bytes of the file's text.
func (f *file) readAt(p []byte, offset int64) error {
	text := f.spool
	if text == nil {
		text = f.origin
	}
	switch _, err := text.ReadAt(p, offset); {
	case errors.Is(err, io.EOF):
		return f.changed()
	case err != nil:
		return fmt.Errorf("%w: read %s: %w", export.ErrUnavailable, f.name, err)
	}
	return nil
}

// block is a run of whole lines of one file.
type block struct {
	file   int
	offset int64 // of data in the file's text
	line   int64 // number of the first line, from 1
	data   []byte
}

// readFiles reads every file once and adds its lines to the builder. Some goroutines read and decompress, the largest
// files first; others parse the blocks.
func readFiles(ctx context.Context, files []*file, spoolDir string, b *builder) error {
	group, ctx := errgroup.WithContext(ctx)
	cores := runtime.GOMAXPROCS(0)
	blocks := make(chan block, cores)
	pool := &sync.Pool{New: func() any { return make([]byte, 0, blockSize) }}

	order := make(chan int, len(files))
	numbers := make([]int, len(files))
	for i := range numbers {
		numbers[i] = i
	}
	slices.SortStableFunc(numbers, func(i, j int) int { return cmp.Compare(files[j].size, files[i].size) })
	for _, number := range numbers {
		order <- number
	}
	close(order)

	var readers sync.WaitGroup
	for range min(cores, len(files)) {
		readers.Add(1)
		group.Go(func() error {
			defer readers.Done()
			for number := range order {
				if err := readFile(ctx, files[number], number, spoolDir, pool, blocks, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		readers.Wait()
		close(blocks)
		return nil
	})
	for range cores {
		group.Go(func() error {
			taker := taker{builder: b, files: files}
			for block := range blocks {
				if err := taker.take(block); err != nil {
					return err
				}
				if cap(block.data) <= 4*blockSize {
					pool.Put(block.data[:0]) //nolint:staticcheck // one header a megabyte is no cost
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// readFile reads one file, into its spool when it is gzipped, and sends its lines in blocks.
func readFile(
	ctx context.Context, f *file, number int, spoolDir string, pool *sync.Pool, blocks chan<- block, b *builder,
) error {
	var text io.Reader = f.origin
	if strings.HasSuffix(f.name, ".gz") {
		unzipped, err := gzip.NewReader(bufio.NewReaderSize(f.origin, blockSize/4))
		if err != nil {
			return fmt.Errorf("decompress %s: %w", f.name, err)
		}
		defer unzipped.Close()
		text = unzipped
		spool, err := os.CreateTemp(spoolDir, "sluice-ndjson-*")
		if err != nil {
			return fmt.Errorf("spool %s: %w", f.name, err)
		}
		f.spool = spool
		// An unlinked file is freed when the process ends, even when it is killed.
		if err := os.Remove(spool.Name()); err != nil {
			return fmt.Errorf("spool %s: %w", f.name, err)
		}
	}
	next := block{file: number, line: 1, data: pool.Get().([]byte)}
	for ended, skipping := false, false; !ended; {
		from := len(next.data)
		var err error
		if next.data, err = fill(text, next.data); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", f.name, err)
		}
		ended = err != nil
		if f.spool != nil {
			if _, err := f.spool.Write(next.data[from:]); err != nil {
				return fmt.Errorf("spool %s: %w", f.name, err)
			}
		}
		whole := bytes.LastIndexByte(next.data, '\n') + 1
		if ended {
			whole = len(next.data)
		}
		if skipping { // the rest of a line that is too long
			rest := bytes.IndexByte(next.data, '\n') + 1
			if skipping = rest == 0; skipping {
				rest = len(next.data)
			} else {
				next.line++
			}
			next.offset += int64(rest)
			next.data = next.data[:copy(next.data, next.data[rest:])]
			whole = max(whole-rest, 0)
		}
		if whole == 0 {
			if len(next.data) >= b.maxLine {
				b.tooLong(number, next.line)
				next.offset += int64(len(next.data))
				next.data, skipping = pool.Get().([]byte), true
			}
			continue
		}
		following := block{file: number, offset: next.offset + int64(whole)}
		following.line = next.line + int64(bytes.Count(next.data[:whole], []byte{'\n'}))
		following.data = append(pool.Get().([]byte), next.data[whole:]...)
		next.data = next.data[:whole]
		select {
		case blocks <- next:
		case <-ctx.Done():
			return ctx.Err()
		}
		next = following
	}
	if next.offset > placeMask {
		return fmt.Errorf("%s holds more than %d bytes", f.name, int64(placeMask))
	}
	return f.unchanged()
}

// fill appends from text until the slice is full; it grows a slice that is full already. The last bytes come with io.EOF.
func fill(text io.Reader, data []byte) ([]byte, error) {
	if len(data) == cap(data) {
		data = slices.Grow(data, cap(data))
	}
	for len(data) < cap(data) {
		n, err := text.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err != nil {
			return data, err
		}
	}
	return data, nil
}
