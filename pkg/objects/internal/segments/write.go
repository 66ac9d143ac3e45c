package segments

import (
	"crypto/cipher"
	"crypto/rand"
	"io"
)

// Writer encrypts one object. It is for one goroutine, and holds one segment.
type Writer struct {
	to      io.Writer
	aead    cipher.AEAD
	header  []byte // nil once it is written
	buffer  []byte // plaintext that is not yet sealed
	segment int64  // the number of the segment in the buffer
}

// NewWriter returns a Writer of the object of that name under its job's data key, of KeySize bytes. It writes the stored
// form to the other writer, a segment at a time.
func NewWriter(to io.Writer, dataKey []byte, name string) (*Writer, error) {
	header := make([]byte, HeaderSize)
	copy(header, prefix)
	_, _ = rand.Read(header[prefixSize:]) // it never fails
	aead, err := objectKey(dataKey, header[prefixSize:], name)
	if err != nil {
		return nil, err
	}
	return &Writer{to: to, aead: aead, header: header, buffer: make([]byte, 0, sealedSize)}, nil
}

// Write encrypts p. After an error of the other writer, which it returns, the Writer cannot be used any more.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		// A full segment is sealed only when more bytes come: whether it is the last one is part of its nonce.
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

// Held is how many bytes of plaintext have not been written yet. It is more than zero once anything came in.
func (w *Writer) Held() int { return len(w.buffer) }

// Close writes the last segment. It does not close the other writer.
func (w *Writer) Close() error { return w.seal(true) }

// seal encrypts the buffer in its place and writes it, behind the header if it is the first.
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
