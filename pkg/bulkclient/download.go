package bulkclient

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

type download struct {
	client   *Client
	folder   *folder
	open     bool // the files need no token
	ownOnly  bool // files on other origins need no token
	keepGzip bool
	// maxBytes limits both counts below; 0: no limit. Compressed bytes need not yield others: a gzip member can be empty.
	maxBytes int64
	bytes    atomic.Int64 // of all files so far, uncompressed
	received atomic.Int64 // of all files of this run so far, as received
}

// result is one file in the folder, with the time of its download in this run.
type result struct {
	file       File
	stored     StoredFile
	begin, end time.Time // zero when an earlier run downloaded it
}

// all downloads the missing files concurrently, the largest first so that no large one runs alone at the end. The first
// failure stops the others; their parts stay. recorded are the files of earlier runs, by URL. The results are in the order
// of files.
func (d *download) all(ctx context.Context, files []File, recorded map[string]StoredFile) ([]result, error) {
	d.client.cfg.Observer.Planned(files)
	results := make([]result, len(files))
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(files[b].Count, files[a].Count) })

	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(d.client.cfg.Parallel)
	for _, i := range order {
		file := files[i]
		if stored, ok := recorded[file.URL]; ok {
			d.bytes.Add(stored.Bytes)
			d.client.cfg.Observer.Advanced(file, stored.Resources, stored.Bytes)
			d.client.cfg.Observer.Finished(file)
			file.Type = cmp.Or(file.Type, stored.Type)
			results[i] = result{file: file, stored: stored}
			continue
		}
		group.Go(func() error {
			begin := time.Now()
			stored, err := d.file(ctx, file)
			if err != nil {
				return fmt.Errorf("download %s: %w", file.Name, err)
			}
			d.client.cfg.Observer.Finished(file)
			file.Type = cmp.Or(file.Type, stored.Type)
			results[i] = result{file, stored, begin, time.Now()}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return results, nil
}

// file downloads one file. It starts over if the file changes on the server meanwhile.
func (d *download) file(ctx context.Context, file File) (StoredFile, error) {
	const restarts = 3
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return StoredFile{}, err
		}
		stored, err := d.attempt(ctx, file)
		if !errors.Is(err, errChanged) && !errors.Is(err, ErrMismatch) {
			return stored, err
		}
		// The part is invalid, and a later run must not use it.
		err = errors.Join(err, d.folder.remove(file.Name+partSuffix, file.Name+metaSuffix))
		if n == restarts || !errors.Is(err, errChanged) {
			return StoredFile{}, err
		}
	}
}

// attempt reads the file once from its first byte to its last, first from the part and then from the server, and gives
// it its final name if all checks pass.
func (d *download) attempt(ctx context.Context, file File) (stored StoredFile, err error) {
	in, err := d.openStream(ctx, file)
	if err != nil {
		return StoredFile{}, err
	}
	var resources, length int64
	defer func() {
		err = errors.Join(err, in.Close())
		if err != nil {
			d.bytes.Add(-length)
			d.received.Add(-in.pos)
			d.client.cfg.Observer.Advanced(file, -resources, -length)
		}
	}()
	announced, err := sha256Of(in.meta.Digest)
	if err != nil {
		return StoredFile{}, err
	}
	raw, plain, check := sha256.New(), sha256.New(), linesOf(file, file.Count)
	body := bufio.NewReaderSize(io.TeeReader(in, raw), 128<<10)
	zipped := isGzip(body)
	if in.err != nil {
		return StoredFile{}, in.err
	}
	stored.File = file.Name
	out, name := in.part, in.name // the part becomes the file, unless it has to be unzipped
	unzips := zipped && !d.keepGzip
	if unzips {
		name = file.Name + newSuffix
		out, err = d.folder.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
		if err != nil {
			return StoredFile{}, fmt.Errorf("create the file: %w", err)
		}
		defer func() {
			err = errors.Join(err, out.Close())
			if err != nil {
				err = errors.Join(err, d.folder.remove(name))
			}
		}()
	} else if zipped {
		stored.File += ".gz"
	}

	sink := io.Writer(check)
	if unzips {
		sink = io.MultiWriter(check, plain, out)
	}
	err = decode(body, zipped, func(piece []byte) error {
		length += int64(len(piece))
		if all := d.bytes.Add(int64(len(piece))); d.maxBytes > 0 && all > d.maxBytes {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, d.maxBytes)
		}
		_, err := sink.Write(piece)
		d.client.cfg.Observer.Advanced(file, check.count-resources, int64(len(piece)))
		resources = check.count
		return errors.Join(err, ctx.Err())
	})
	switch {
	case in.err != nil:
		return StoredFile{}, in.err
	case err != nil:
		return StoredFile{}, err
	}
	if announced != nil && !bytes.Equal(announced, raw.Sum(nil)) {
		return StoredFile{}, fmt.Errorf("%w: its digest differs from Repr-Digest", ErrMismatch)
	}
	if file.Digest != nil && zipped && hex.EncodeToString(raw.Sum(nil)) != file.Digest.SHA256 {
		return StoredFile{}, fmt.Errorf("%w: its digest differs from that of the manifest", ErrMismatch)
	}
	if err := check.Close(); err != nil {
		return StoredFile{}, err
	}
	d.client.cfg.Observer.Advanced(file, check.count-resources, 0)
	resources = check.count

	stored.Type, stored.Resources, stored.Bytes = check.typ, check.resources(), length
	stored.Size, stored.SHA256 = in.pos, hex.EncodeToString(raw.Sum(nil))
	if unzips {
		stored.Size, stored.SHA256 = length, hex.EncodeToString(plain.Sum(nil))
	}
	// A kill between these steps loses nothing: a file that is in the journal and in the folder is finished, and any
	// other file is rebuilt from its part.
	if err := out.Sync(); err != nil {
		return StoredFile{}, fmt.Errorf("flush %s: %w", name, err)
	}
	if err := d.folder.record(file.URL, stored); err != nil {
		return StoredFile{}, err
	}
	if err := d.folder.root.Rename(name, stored.File); err != nil {
		return StoredFile{}, fmt.Errorf("rename to %s: %w", stored.File, err)
	}
	return stored, d.folder.remove(file.Name+partSuffix, file.Name+metaSuffix)
}

// isGzip reports whether the file begins with the two bytes of gzip, which no JSON begins with. Content-Encoding is no
// evidence: stores serve compressed files without it, and proxies decompress files and leave it.
func isGzip(in *bufio.Reader) bool {
	begin, _ := in.Peek(2) // the next read returns the error again
	return string(begin) == "\x1f\x8b"
}

// decode passes on a file in pieces, decompressed. Invalid compression is ErrMismatch; errors of the reader are returned
// as they are or wrapped.
func decode(in io.Reader, zipped bool, take func([]byte) error) (err error) {
	if zipped {
		unzip, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("%w: it is not gzip: %w", ErrMismatch, err)
		}
		defer func() {
			if closeErr := unzip.Close(); err == nil { // otherwise it would be the same error
				err = closeErr
			}
		}()
		in = gzipReader{unzip}
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

// gzipReader marks errors of the decompression as ErrMismatch.
type gzipReader struct{ in io.Reader }

func (r gzipReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: its gzip is damaged: %w", ErrMismatch, err)
	}
	return n, err
}

// sha256Of returns the SHA-256 of a Repr-Digest header (RFC 9530: a dictionary of byte sequences, as
// sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:), or nil if the header has none.
func sha256Of(header string) ([]byte, error) {
	for member := range strings.SplitSeq(header, ",") { // base64 has no comma
		key, value, _ := strings.Cut(strings.TrimSpace(member), "=")
		if !strings.EqualFold(key, "sha-256") {
			continue
		}
		value, _, _ = strings.Cut(value, ";")
		text, prefixed := strings.CutPrefix(strings.TrimSpace(value), ":")
		text, suffixed := strings.CutSuffix(text, ":")
		sum, err := base64.StdEncoding.DecodeString(text)
		if !prefixed || !suffixed || err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("%w: its Repr-Digest is malformed", ErrMismatch)
		}
		return sum, nil
	}
	return nil, nil
}
