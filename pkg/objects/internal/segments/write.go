package segments

import (
	"crypto/cipher"
	"crypto/rand"
	"io"
)

// Writer encrypts one object. It must be used by one goroutine, and buffers one segment.
type Writer struct {
	to      io.Writer
	aead    cipher.AEAD
	header  []byte // nil once it is written
	buffer  []byte // plaintext that is not yet sealed
	segment int64  // the number of the segment in the buffer
}

// NewWriter returns a Writer that encrypts the named object under its job's data key of KeySize bytes, and writes the
// stored form to to, one segment at a time.
func NewWriter(to io.Writer, dataKey []byte, name string) (*Writer, error) {
	header := make([]byte, HeaderSize)
	copy(header, prefix)
	_, _ = rand.Read(header[prefixSize:]) // never fails
	aead, err := objectKey(dataKey, header[prefixSize:], name)
	if err != nil {
		return nil, err
	}
	return &Writer{to: to, aead: aead, header: header, buffer: make([]byte, 0, sealedSize)}, nil
}

// Write encrypts p. It returns errors of the underlying writer; after one, the Writer must not be used.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		// Seal a full segment only when more bytes follow, because the nonce marks the last one.
		if len(w.buffer) == Size {
			if err := w.seal(false); err != nil {
				return written, err
			}
		}
		n := min(len(p), Size-len(w.buffer))
		w.buffer = append(w.buffer, p[:n]...)
		written += n
		p = p[n:]
	}
	return written, nil
}

// Buffered returns the number of plaintext bytes not yet written. It is positive after the first byte.
func (w *Writer) Buffered() int { return len(w.buffer) }

// Close writes the last segment. It does not close the underlying writer.
func (w *Writer) Close() error { return w.seal(true) }

// seal encrypts the buffer in place and writes it, after the header if it is the first.
func (w *Writer) seal(last bool) error {
	if w.header != nil {
		if _, err := w.to.Write(w.header); err != nil {
			return err
		}
		w.header = nil
	}
	var n [nonceSize]byte
	nonce(&n, w.segment, last)
	sealed := w.aead.Seal(w.buffer[:0], n[:], w.buffer, nil)
	w.segment++
	w.buffer = w.buffer[:0]
	_, err := w.to.Write(sealed)
	return err
}
