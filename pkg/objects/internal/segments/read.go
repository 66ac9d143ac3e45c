package segments

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
)

// Object is an encrypted object with a parsed header.
type Object struct {
	aead   cipher.AEAD
	stored int64
	plain  int64
}

// Open parses the header of an object with the given name and stored size. dataKey is the key of its job. An invalid
// header or size is an error. The key and the size are not verified before the first segment is read.
func Open(header, dataKey []byte, name string, stored int64) (*Object, error) {
	if len(header) != HeaderSize || string(header[:prefixSize]) != prefix {
		return nil, errors.New("not an encrypted object")
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

// PlainSize returns the size of the plaintext in bytes.
func (o *Object) PlainSize() int64 { return o.plain }

// StoredEnd returns the end, in the stored form, of the segments with the first length bytes of plaintext. The object
// may be shorter.
func StoredEnd(length int64) int64 { return place((length + Size - 1) / Size) }

// place returns the start of the segment in the stored form.
func place(segment int64) int64 { return HeaderSize + segment*sealedSize }

// StoredRange returns the stored bytes [from, to) for a range of the plaintext. The range is cut at the end of the
// object. An empty range also needs a segment.
func (o *Object) StoredRange(offset, length int64) (from, to int64) {
	offset, length = o.cut(offset, length)
	return place(o.segment(offset)), min(place(o.segment(offset+max(length, 1)-1)+1), o.stored)
}

// Reader returns a range of the plaintext, cut at the end of the object. body begins at the start of StoredRange;
// bytes after the range are not read, and errors are wrapped. io.EOF at the end of the object is authenticated by its
// last segment.
func (o *Object) Reader(body io.Reader, offset, length int64) *Reader {
	offset, length = o.cut(offset, length)
	first := o.segment(offset)
	return &Reader{object: o, body: body, segment: first, skip: int(offset - first*Size), left: length}
}

func (o *Object) cut(offset, length int64) (int64, int64) {
	offset = min(offset, o.plain)
	return offset, min(length, o.plain-offset)
}

// segment returns the number of the segment with the byte, or the last segment for the end of the object.
func (o *Object) segment(offset int64) int64 { return min(offset, max(o.plain-1, 0)) / Size }

// Reader decrypts a range of an object. It buffers one segment, and returns only authenticated bytes.
type Reader struct {
	object  *Object
	body    io.Reader
	begun   bool
	segment int64  // the number of the next segment
	skip    int    // bytes of it before the range
	left    int64  // bytes of the range not returned yet
	buffer  []byte // a segment
	ready   []byte // the part of the buffer to be returned
}

// Read implements io.Reader. io.EOF means the end of the range, never of the body.
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

// next reads the next segment and decrypts it in place.
func (r *Reader) next() error {
	from := place(r.segment)
	size := min(r.object.stored-from, sealedSize)
	if r.buffer == nil {
		r.buffer = make([]byte, size)
	}
	sealed := r.buffer[:size]
	_, err := io.ReadFull(r.body, sealed)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // not the end of the range
	}
	if err != nil {
		return fmt.Errorf("segment %d: %w", r.segment, err)
	}
	var n [nonceSize]byte
	nonce(&n, r.segment, from+size == r.object.stored)
	plain, err := r.object.aead.Open(sealed[:0], n[:], sealed, nil)
	if err != nil {
		return fmt.Errorf("segment %d is not authentic", r.segment)
	}
	r.begun = true
	r.segment++
	r.ready = plain[r.skip:]
	r.ready = r.ready[:min(int64(len(r.ready)), r.left)]
	r.skip = 0
	return nil
}
