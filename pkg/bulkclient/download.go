package bulkclient

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

type download struct {
	client    *Client
	folder    *folder
	authorize bool          // the files need the token
	unit      time.Duration // of the job's Retry-After
	keepGzip  bool
}

// result is one file in the folder, with the time of its download in this run.
type result struct {
	file       File
	stored     StoredFile
	begin, end time.Time // zero when an earlier run downloaded it
}

// all downloads the missing files concurrently, the largest first so that no large one runs alone at the end. The first
// failure stops the others; their parts stay. The results are in the order of files.
func (d *download) all(ctx context.Context, files []File) ([]result, error) {
	recorded, err := d.folder.recorded()
	if err != nil {
		return nil, err
	}
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
			d.client.cfg.Observer.Advanced(file, stored.Resources, stored.Bytes)
			d.client.cfg.Observer.Finished(file)
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
			d.client.cfg.Observer.Advanced(file, -resources, -length)
		}
	}()
	announced, err := sha256Of(in.meta.Digest)
	if err != nil {
		return StoredFile{}, err
	}
	stored.File = file.Name
	out, name := in.part, in.name // the part becomes the file, unless it has to be unzipped
	unzips := in.meta.Encoding == "gzip" && !d.keepGzip
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
	} else if in.meta.Encoding == "gzip" {
		stored.File += ".gz"
	}

	raw, plain, check := sha256.New(), sha256.New(), newLines(file.Type)
	sink := io.Writer(check)
	if unzips {
		sink = io.MultiWriter(check, plain, out)
	}
	err = decode(io.TeeReader(in, raw), in.meta.Encoding, func(piece []byte) error {
		if _, err := sink.Write(piece); err != nil {
			return err
		}
		d.client.cfg.Observer.Advanced(file, check.count-resources, int64(len(piece)))
		resources, length = check.count, length+int64(len(piece))
		return ctx.Err()
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
	if err := check.Close(file.Count); err != nil {
		return StoredFile{}, err
	}
	d.client.cfg.Observer.Advanced(file, check.count-resources, 0)
	resources = check.count

	stored.Resources, stored.Bytes = resources, length
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

// decode passes on the representation in pieces, without its content encoding. Invalid compression is ErrMismatch;
// errors of the reader are returned as they are or wrapped.
func decode(in io.Reader, encoding string, take func([]byte) error) (err error) {
	if encoding == "gzip" {
		unzip, err := gzip.NewReader(bufio.NewReaderSize(in, 128<<10))
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

// maxHead bounds how much of a line is kept to find its type when the line does not begin with it.
const maxHead = 16 << 20

// lines checks NDJSON that is written to it in pieces: every line must be a resource of one type. It does not
// buffer a line that begins with its resourceType, as Sluice's lines do, so memory does not depend on line lengths.
type lines struct {
	typ     string
	prefix  []byte
	head    []byte // the line so far, while its type is not known
	decided bool   // the line has the right type
	begun   bool   // the line has a byte
	last    byte   // of the line
	count   int64  // finished lines
}

func newLines(typ string) *lines {
	return &lines{typ: typ, prefix: []byte(`{"resourceType":"` + typ + `"`)}
}

// Write checks the next piece.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		piece, rest, ended := bytes.Cut(p, []byte{'\n'})
		if err := l.add(piece); err != nil {
			return 0, err
		}
		if ended {
			if err := l.end(); err != nil {
				return 0, err
			}
		}
		p = rest
	}
	return n, nil
}

// Close ends the last line, which needs no newline, and compares the number of lines with the announced one (-1: none).
func (l *lines) Close(announced int64) error {
	if l.begun {
		if err := l.end(); err != nil {
			return err
		}
	}
	if announced >= 0 && l.count != announced {
		return fmt.Errorf("%w: it has %d resources, not %d", ErrMismatch, l.count, announced)
	}
	return nil
}

func (l *lines) add(piece []byte) error {
	if len(piece) == 0 {
		return nil
	}
	l.begun, l.last = true, piece[len(piece)-1]
	if l.decided {
		return nil
	}
	if len(l.head) == 0 && bytes.HasPrefix(piece, l.prefix) {
		l.decided = true
		return nil
	}
	if len(l.head)+len(piece) > maxHead {
		return fmt.Errorf("%w: line %d is too long to find its type", ErrMismatch, l.count+1)
	}
	l.head = append(l.head, piece...)
	l.decided = bytes.HasPrefix(l.head, l.prefix)
	return nil
}

func (l *lines) end() error {
	line := l.count + 1
	if !l.begun {
		return fmt.Errorf("%w: line %d is empty", ErrMismatch, line)
	}
	if !l.decided {
		var resource struct {
			ResourceType string `json:"resourceType"`
		}
		if json.Unmarshal(l.head, &resource) != nil {
			return fmt.Errorf("%w: line %d is not a JSON object", ErrMismatch, line)
		}
		if resource.ResourceType != l.typ {
			return fmt.Errorf("%w: line %d is of type %q, not %s", ErrMismatch, line, printable(resource.ResourceType), l.typ)
		}
	} else if l.last != '}' && l.last != '\r' {
		return fmt.Errorf("%w: line %d is cut short", ErrMismatch, line)
	}
	l.count, l.head, l.decided, l.begun = line, l.head[:0], false, false
	return nil
}
