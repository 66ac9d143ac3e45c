// Package gzipblocks writes gzip streams that can be read from the middle.
//
// A stream is a single gzip member (RFC 1952), because some HTTP clients read only the first of several members. After
// every BlockSize bytes of text the compressor starts anew and refers to nothing before (as with Z_FULL_FLUSH), so a block
// is decompressed alone. The index of a stream has the compressed size of each block; it is kept apart from the stream.
package gzipblocks

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// BlockSize is the text of one block in bytes; the last block may be shorter. It is what reading a byte costs at most.
const BlockSize = 1 << 20

// Encoder names how a Writer compresses. The same text always has the same stream, however it is cut into writes, under
// the same name: whoever has a text can tell whether it is that of a stream whose digest is known. Change the name when
// a text gets another stream, such as by another release of the library; TestStreamsOfThisEncoder fails then.
const Encoder = "sluice-gzip-1"

// header is that of a gzip member without a name and a time (RFC 1952 section 2.3.1).
const header = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"

// Writer writes one stream. Use Reset, Write and Close; then Index. It is not safe for concurrent use.
type Writer struct {
	to      io.Writer
	deflate *flate.Writer
	begun   bool
	sum     uint32
	size    uint32 // of the text, modulo 2^32 as in the trailer
	block   int    // text in the current block
	written int64  // bytes of the current block, with the header in the first
	index   []byte
}

// Reset begins a new stream to an unbuffered or buffered writer.
func (w *Writer) Reset(to io.Writer) error {
	deflate := w.deflate
	*w = Writer{to: to, deflate: deflate}
	if deflate != nil {
		deflate.Reset(counter{w})
		return nil
	}
	var err error
	// Level 1 is as fast as the store. Higher levels slow down the export and save little space.
	w.deflate, err = flate.NewWriter(counter{w}, flate.BestSpeed)
	return err
}

// counter counts the bytes of the stream.
type counter struct{ w *Writer }

func (c counter) Write(p []byte) (int, error) {
	n, err := c.w.to.Write(p)
	c.w.written += int64(n)
	return n, err
}

// Write appends text.
func (w *Writer) Write(p []byte) (written int, err error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	for written < len(p) {
		if w.block == BlockSize {
			if err := w.endBlock(); err != nil {
				return written, err
			}
		}
		part := p[written:min(len(p), written+BlockSize-w.block)]
		n, err := w.deflate.Write(part)
		written += n
		w.block += n
		w.sum = crc32.Update(w.sum, crc32.IEEETable, part[:n])
		w.size += uint32(n) //nolint:gosec // the trailer has the size modulo 2^32
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (w *Writer) begin() error {
	if w.begun {
		return nil
	}
	w.begun = true
	_, err := io.WriteString(counter{w}, header)
	return err
}

// endBlock ends the block at a byte's boundary and forgets its text.
func (w *Writer) endBlock() error {
	if err := w.deflate.Flush(); err != nil {
		return err
	}
	if len(w.index) == 0 {
		w.index = binary.AppendUvarint(nil, BlockSize)
	}
	w.index = binary.AppendUvarint(w.index, uint64(w.written)) //nolint:gosec // a size
	w.written, w.block = 0, 0
	w.deflate.Reset(counter{w})
	return nil
}

// Close ends the stream. It does not close the underlying writer.
func (w *Writer) Close() error {
	if err := w.begin(); err != nil {
		return err
	}
	if err := w.deflate.Close(); err != nil {
		return err
	}
	trailer := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, w.sum), w.size)
	_, err := counter{w}.Write(trailer)
	return err
}

// Index returns the index of a closed stream. It is empty for a stream of a single block. It has about four characters for
// each block: base64 of the size of a block's text, and of the stored size of every block but the last, as unsigned
// varints.
func (w *Writer) Index() string { return base64.RawStdEncoding.EncodeToString(w.index) }

var errIndex = errors.New("the index of a gzip stream is malformed")

// Place is where a part of the text is in a stream.
type Place struct {
	Offset, Length int64 // of the stored bytes to read
	Skip           int64 // bytes of the text of these before the part
}

// Find returns where the part of the text at start is, length bytes of it, in a stream of stored bytes. length must not be
// zero.
func Find(index string, start, length, stored int64) (Place, error) {
	sizes, err := base64.RawStdEncoding.DecodeString(index)
	size, n := binary.Uvarint(sizes)
	if err != nil || n <= 0 || size == 0 || size > 1<<40 || start < 0 || length <= 0 {
		return Place{}, errIndex
	}
	block := int64(size) //nolint:gosec // bounded above
	first, last := start/block, (start+length-1)/block
	var from, end, at int64
	at = int64(len(header)) // the first block's size includes the header
	from = at
	offset := int64(0)
	rest := sizes[n:]
	for i := int64(0); ; i++ {
		if i == first {
			from = max(offset, at)
		}
		if len(rest) == 0 { // the last block
			if i < first {
				return Place{}, fmt.Errorf("%w: it ends before the part", errIndex)
			}
			end = stored
			break
		}
		compressed, n := binary.Uvarint(rest)
		if n <= 0 || compressed > 1<<40 {
			return Place{}, errIndex
		}
		rest = rest[n:]
		offset += int64(compressed) //nolint:gosec // bounded above
		if i == last {
			end = offset
			break
		}
	}
	if end > stored || end <= from {
		return Place{}, errIndex
	}
	return Place{Offset: from, Length: end - from, Skip: start - first*block}, nil
}

// NewReader returns the text of stored bytes that begin at the Offset of a Place. The caller reads no more than the part.
func NewReader(stored io.Reader) io.ReadCloser { return flate.NewReader(stored) }
