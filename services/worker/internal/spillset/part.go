package spillset

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

// part is an object of ids, one a line. A part is read only as it was written: lists decide which patients are exported.
type part struct {
	key string
	sum []byte // SHA-256 of its lines
}

// digested returns the part with the digest, given in lower-case hex. Nothing has a digest of another form.
func digested(key, digest string) part {
	sum, err := hex.DecodeString(digest)
	if err != nil {
		sum = nil
	}
	return part{key: key, sum: sum}
}

// lines reads the ids of a part. They are those that were written only if verify returns nil.
type lines struct {
	*bufio.Scanner

	body   io.Closer
	digest hash.Hash
	want   []byte
}

func (p part) open(ctx context.Context, store *objects.Store) (*lines, error) {
	body, err := store.Open(ctx, p.key, 0, -1)
	if err != nil {
		return nil, err
	}
	digest := sha256.New()
	scanner := bufio.NewScanner(io.TeeReader(body, digest))
	scanner.Buffer(make([]byte, 0, 16<<10), 64<<10)
	return &lines{Scanner: scanner, body: body, digest: digest, want: p.sum}, nil
}

// verify returns the error that ended Scan, or one if the lines are not those that were written.
func (l *lines) verify() error {
	if err := l.Err(); err != nil {
		return err
	}
	if !bytes.Equal(l.digest.Sum(nil), l.want) {
		return errors.New("stored ids were changed")
	}
	return nil
}

func (l *lines) close() error { return l.body.Close() }

// ReadIDs returns the ids of an object, one a line, in whole: for short lists. It must have the digest, in lower-case hex.
func ReadIDs(ctx context.Context, store *objects.Store, key, digest string) ([]string, error) {
	return readLines(ctx, store, digested(key, digest))
}

func readLines(ctx context.Context, store *objects.Store, stored part) (ids []string, err error) {
	lines, err := stored.open(ctx, store)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lines.close()) }()
	for lines.Scan() {
		ids = append(ids, lines.Text())
	}
	return ids, lines.verify()
}

// writeLines writes the ids as one object, one a line, and returns the SHA-256 of the lines.
func writeLines(ctx context.Context, store *objects.Store, key string, each idSeq) (sum []byte, err error) {
	object := store.Create(ctx, key, "text/plain")
	digest := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(object, digest), 64<<10)
	err = encodeLines(buffered, each)
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write ids: %w", err), object.Abort())
	}
	if _, err := object.Commit(); err != nil {
		return nil, fmt.Errorf("write ids: %w", err)
	}
	return digest.Sum(nil), nil
}

// encodeLines writes the ids, one a line.
func encodeLines(w io.Writer, each idSeq) error {
	return each(func(id string) error {
		if _, err := io.WriteString(w, id); err != nil {
			return err
		}
		_, err := w.Write(newline)
		return err
	})
}

var newline = []byte{'\n'}
