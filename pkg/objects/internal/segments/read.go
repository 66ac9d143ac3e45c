package segments

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
)

// Object is an encrypted object whose header was read.
type Object struct {
	aead   cipher.AEAD
	stored int64
	plain  int64
}

// Open reads the header of the object of that name, of whose stored form there are so many bytes, under its job's data
// key. What has no such header, or a size that cannot be, is an error: it is no encrypted object. Neither the size nor
// the key is proven right before the first segment that is read.
func Open(header, dataKey []byte, name string, stored int64) (*Object, error) {
	if len(header) != HeaderSize || string(header[:prefixSize]) != prefix {
		return nil, errors.New("it is not encrypted as it should be")
	}
	plain, err := plainSize(stored)
	if err != nil {
		return nil, err
	}
	aead, err := objectKey(dataKey, header[prefixSize:], name)
	if err != nil {
		return nil, err
	}
	return &Object{aead: aead, stored: stored, plain: plain}, nil
}

// PlainSize is the size of the plaintext in bytes.
func (o *Object) PlainSize() int64 { return o.plain }

// Reach is where the segments end, in the stored form, that so many bytes of plaintext from the beginning on are in. An
// object may be shorter than that.
func Reach(length int64) int64 { return place((length + Size - 1) / Size) }

// place is where the segment begins in the stored form.
func place(segment int64) int64 { return HeaderSize + segment*sealedSize }

// Span returns which stored bytes a range of the plaintext is read from: from one to before another. The range is cut at
// the end of the object. An empty one, too, is read from a segment, the last one when it lies at the end.
func (o *Object) Span(offset, length int64) (from, to int64) {
	offset, length = o.cut(offset, length)
	return place(o.segment(offset)), min(place(o.segment(offset+max(length, 1)-1)+1), o.stored)
}

// Reader returns the range of the plaintext, cut at the end of the object, from a body that begins where Span says. What
// follows the range in it is not read, and its errors are wrapped. When a Reader says that the range ends because the
// object does, its last segment has proven that.
func (o *Object) Reader(body io.Reader, offset, length int64) *Reader {
	offset, length = o.cut(offset, length)
	first := o.segment(offset)
	return &Reader{object: o, body: body, segment: first, skip: int(offset - first*Size), left: length}
}

func (o *Object) cut(offset, length int64) (int64, int64) {
	offset = min(offset, o.plain)
	return offset, min(length, o.plain-offset)
}

// segment is the number of the segment that the byte is in, or the last for the end of the object.
func (o *Object) segment(offset int64) int64 { return min(offset, max(o.plain-1, 0)) / Size }

// Reader decrypts a range of an object. It holds one segment, and gives out nothing of a segment that is not authentic.
type Reader struct {
	object  *Object
	body    io.Reader
	begun   bool
	segment int64  // the number of the next segment
	skip    int    // bytes of it that are before the range
	left    int64  // bytes of the range that were not given out
	buffer  []byte // a segment
	ready   []byte // the part of the buffer that is to be given out
}

// Read is io.Reader's. io.EOF is the end of the range, and never that of the body.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.ready) == 0 && (r.left > 0 || !r.begun) {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	r.left -= int64(n)
	return n, nil
}

// next reads and decrypts the next segment, in its place.
func (r *Reader) next() error {
	from := place(r.segment)
	size := min(r.object.stored-from, sealedSize)
	if r.buffer == nil {
		r.buffer = make([]byte, size)
	}
	sealed := r.buffer[:size]
	_, err := io.ReadFull(r.body, sealed)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // an end that is none must not be taken for one
	}
	if err != nil {
		return fmt.Errorf("segment %d: %w", r.segment, err)
	}
	var n [nonceSize]byte
	nonce(&n, r.segment, from+size == r.object.stored)
	plain, err := r.object.aead.Open(sealed[:0], n[:], sealed, nil)
	if err != nil {
		return fmt.Errorf("segment %d is not what was written", r.segment)
	}
	r.begun = true
	r.segment++
	r.ready = plain[r.skip:]
	r.ready = r.ready[:min(int64(len(r.ready)), r.left)]
	r.skip = 0
	return nil
}
