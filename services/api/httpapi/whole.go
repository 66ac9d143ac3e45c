package httpapi

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
)

// errAltered means that an object is not the one that was committed.
var errAltered = errors.New("the object differs from the one that was committed")

// whole reads a stream to its end and holds the last byte back until the end is confirmed: the source ends without an error,
// has the expected size, and has the expected SHA-256. A response that ends before its last byte does not appear complete.
type whole struct {
	source *bufio.Reader // of at least two bytes
	left   int64         // bytes of the expected size that are not returned yet
	sized  bool          // the size is known
	sum    hash.Hash     // nil: the digest is not known
	want   string        // digest in lower-case hex
}

// newWhole returns a reader of the source. size < 0 and digest "" are not checked.
func newWhole(source io.Reader, size int64, digest string) *whole {
	if opened, ok := source.(reading); ok {
		source = opened.Reader // use its buffer
	}
	buffered, ok := source.(*bufio.Reader)
	if !ok {
		buffered = bufio.NewReaderSize(source, transferBuffer)
	}
	w := &whole{source: buffered, left: size, sized: size >= 0, want: digest}
	if !w.sized {
		w.left = math.MaxInt64
	}
	if digest != "" {
		w.sum = sha256.New()
	}
	return w
}

func (w *whole) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	ahead, err := w.source.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	last := err != nil
	if last && len(ahead) == 0 && (w.left == 0 || !w.sized) {
		return 0, io.EOF // the last byte was returned, or the source is empty
	}
	n := len(ahead)
	if !last {
		n = int(min(int64(min(len(p), w.source.Buffered()-1)), w.left-1))
	}
	if n <= 0 { // more bytes than expected, or none although some are missing
		return 0, fmt.Errorf("%w: it has another size", errAltered)
	}
	n, err = io.ReadFull(w.source, p[:n])
	if err != nil {
		return 0, err
	}
	w.left -= int64(n)
	if w.sum != nil {
		w.sum.Write(p[:n])
	}
	if !last {
		return n, nil
	}
	switch {
	case w.sized && w.left != 0:
		return 0, fmt.Errorf("%w: it has another size", errAltered)
	case w.sum != nil && hex.EncodeToString(w.sum.Sum(nil)) != w.want:
		return 0, fmt.Errorf("%w: it has another SHA-256", errAltered)
	}
	return n, nil
}
