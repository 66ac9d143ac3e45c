package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// Whatever differs, the reader does not return everything: a response with its length appears incomplete.
func TestAWholeFileIsTheCommittedOne(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 2, transferBuffer - 1, transferBuffer, transferBuffer + 1, 3*transferBuffer + 7} {
		text := strings.Repeat("a", size)
		sum := sha256.Sum256([]byte(text))
		digest := hex.EncodeToString(sum[:])
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"as it comes": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader,
			"by bytes": iotest.OneByteReader, "data with EOF": iotest.DataErrReader,
		} {
			read := func(text string, size int64, digest string) ([]byte, error) {
				return io.ReadAll(newWhole(wrap(strings.NewReader(text)), size, digest))
			}
			for _, known := range []int64{int64(size), -1} {
				if got, err := read(text, known, digest); err != nil || !bytes.Equal(got, []byte(text)) {
					t.Errorf("%d bytes %s: got %d, %v", size, name, len(got), err)
				}
			}
			if size == 0 {
				continue
			}
			for what, other := range map[string]string{
				"another byte": text[:size-1] + "b", "a byte more": text + "a", "a byte less": text[:size-1],
				"a half": text[:size/2], "twice": text + text, "the first byte": "b" + text[1:],
			} {
				if got, err := read(other, int64(size), digest); !errors.Is(err, errAltered) || len(got) >= size {
					t.Errorf("%d bytes %s, %s: %d bytes, %v", size, name, what, len(got), err)
				}
			}
			if got, err := io.ReadAll(newWhole(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(text+"aa"))),
				int64(size), digest)); err == nil || len(got) >= size {
				t.Errorf("%d bytes of a broken source: %v", len(got), err)
			}
		}
	}
}
