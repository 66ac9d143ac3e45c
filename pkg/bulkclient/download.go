package bulkclient

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// download is the files' part of an export.
type download struct {
	client   *Client
	folder   *folder
	secret   bool          // the files want the token
	unit     time.Duration // what a Retry-After of the job counts
	keepGzip bool
}

// result is one file in the folder and the time that this run spent on it.
type result struct {
	file       File
	stored     Stored
	begin, end time.Time // zero when the file was there before
}

// all downloads what is not there yet, several files at once, the largest first so that none is left alone at the
// end. The first failure stops the others; their parts stay. The results are in the order of the files.
func (d *download) all(ctx context.Context, files []File) ([]result, error) {
	there, err := d.folder.recorded()
	if err != nil {
		return nil, err
	}
	d.client.observer.Planned(files)
	results := make([]result, len(files))
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(files[b].Count, files[a].Count) })

	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(d.client.parallel)
	for _, i := range order {
		file := files[i]
		if stored, ok := there[file.URL]; ok {
			d.client.observer.Advanced(file, stored.Resources, stored.Bytes)
			d.client.observer.Finished(file)
			results[i] = result{file: file, stored: stored}
			continue
		}
		group.Go(func() error {
			begin := time.Now()
			stored, err := d.file(ctx, file)
			if err != nil {
				return fmt.Errorf("download %s: %w", file.Name, err)
			}
			d.client.observer.Finished(file)
			results[i] = result{file, stored, begin, time.Now()}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return results, nil
}

// file downloads one file, from the start again when it changes on the server meanwhile.
func (d *download) file(ctx context.Context, file File) (Stored, error) {
	const restarts = 3
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return Stored{}, err
		}
		stored, err := d.attempt(ctx, file)
		if !errors.Is(err, errChanged) && !errors.Is(err, ErrMismatch) {
			return stored, err
		}
		// These bytes are of no use: not now, and not to a later run.
		err = errors.Join(err, d.folder.remove(file.Name+partSuffix, file.Name+metaSuffix))
		if n == restarts || !errors.Is(err, errChanged) {
			return Stored{}, err
		}
	}
}

// attempt reads the file once from its first byte to its last, be they in the part already or still at the server,
// and gives it its final name if all of it is right.
func (d *download) attempt(ctx context.Context, file File) (stored Stored, err error) {
	in, err := d.client.openStream(ctx, d.folder, file, d.secret, d.unit)
	if err != nil {
		return Stored{}, err
	}
	var resources, length int64
	defer func() {
		err = errors.Join(err, in.Close())
		if err != nil {
			d.client.observer.Advanced(file, -resources, -length)
		}
	}()
	announced, err := sha256Of(in.meta.Digest)
	if err != nil {
		return Stored{}, err
	}
	stored.URL, stored.File = file.URL, file.Name
	var out *os.File // nil when the part becomes the file
	if in.meta.Encoding == "gzip" && d.keepGzip {
		stored.File += ".gz"
	} else if in.meta.Encoding == "gzip" {
		out, err = d.folder.root.OpenFile(file.Name+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
		if err != nil {
			return Stored{}, fmt.Errorf("make the file: %w", err)
		}
		defer func() {
			err = errors.Join(err, out.Close())
			if err != nil {
				err = errors.Join(err, d.folder.remove(file.Name+newSuffix))
			}
		}()
	}

	raw, plain, check := sha256.New(), sha256.New(), newLines(file.Type)
	wire := io.TeeReader(in, raw)
	sink := []io.Writer{check}
	if out != nil {
		sink = append(sink, plain, out)
	}
	err = decode(wire, in.meta.Encoding, func(piece []byte) error {
		before := check.count
		for _, w := range sink {
			if _, err := w.Write(piece); err != nil {
				return err
			}
		}
		resources, length = check.count, length+int64(len(piece))
		d.client.observer.Advanced(file, check.count-before, int64(len(piece)))
		return ctx.Err()
	})
	switch {
	case in.err != nil:
		return Stored{}, in.err
	case err != nil:
		return Stored{}, err
	}
	if announced != nil && !bytes.Equal(announced, raw.Sum(nil)) {
		return Stored{}, fmt.Errorf("%w: its digest is not the one in Repr-Digest", ErrMismatch)
	}
	before := check.count
	if err := check.Close(file.Count); err != nil {
		return Stored{}, err
	}
	resources = check.count
	d.client.observer.Advanced(file, check.count-before, 0)
	stored.Resources, stored.Bytes = check.count, length

	if out == nil {
		stored.Size, stored.SHA256 = in.pos, hex.EncodeToString(raw.Sum(nil))
		err = d.keep(in.part, in.name, stored)
	} else {
		stored.Size, stored.SHA256 = length, hex.EncodeToString(plain.Sum(nil))
		err = d.keep(out, file.Name+newSuffix, stored)
	}
	if err != nil {
		return Stored{}, err
	}
	return stored, d.folder.remove(file.Name+partSuffix, file.Name+metaSuffix)
}

// keep gives a file that is checked its final name. The order matters to a process that is killed in between: what
// the journal lists and the folder holds is finished, everything else is done again from the part.
func (d *download) keep(file *os.File, name string, stored Stored) error {
	if err := file.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", name, err)
	}
	if err := d.folder.record(stored); err != nil {
		return err
	}
	if err := d.folder.root.Rename(name, stored.File); err != nil {
		return fmt.Errorf("rename to %s: %w", stored.File, err)
	}
	return nil
}

// decode gives the pieces of the representation without its content encoding. What is wrong with the compression is
// ErrMismatch; errors of the reader come back as they are or inside it.
func decode(in io.Reader, encoding string, take func([]byte) error) (err error) {
	if encoding == "gzip" {
		unzip, err := gzip.NewReader(bufio.NewReaderSize(in, 128<<10))
		if err != nil {
			return fmt.Errorf("%w: it is not gzip: %w", ErrMismatch, err)
		}
		defer func() {
			if failed := unzip.Close(); err == nil { // else it only says the same again
				err = failed
			}
		}()
		in = wrongGzip{unzip}
	}
	piece := make([]byte, 256<<10)
	for {
		n, err := in.Read(piece)
		if n > 0 {
			if err := take(piece[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// wrongGzip says of an error in compressed data that the data are at fault.
type wrongGzip struct{ in io.Reader }

func (w wrongGzip) Read(p []byte) (int, error) {
	n, err := w.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: its gzip is damaged: %w", ErrMismatch, err)
	}
	return n, err
}
