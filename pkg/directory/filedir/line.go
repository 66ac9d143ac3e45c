package filedir

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

const bufferSize = 64 << 10 // bytes

// byteOrderMark may precede any line, because files are concatenated.
var byteOrderMark = []byte("\xef\xbb\xbf")

// lineReader is a reader of one line at a time, of any length: it returns io.EOF at the end of the line.
type lineReader struct {
	from    *bufio.Reader
	offset  int64 // of the line, after a byte order mark
	size    int64 // bytes read of the line, with its newline
	pending []byte
	ended   bool
	err     error // of reading from
}

// next moves to the next line and reports whether there is one. Read the current line to its end first.
func (l *lineReader) next() bool {
	l.offset, l.size, l.ended, l.pending = l.offset+l.size, 0, false, nil
	if l.err != nil {
		return false
	}
	start, err := l.from.Peek(len(byteOrderMark))
	if len(start) == 0 {
		if !errors.Is(err, io.EOF) {
			l.err = err
		}
		return false
	}
	if bytes.Equal(start, byteOrderMark) {
		n, _ := l.from.Discard(len(start)) // they are in the buffer
		l.offset += int64(n)
	}
	return true
}

func (l *lineReader) Read(p []byte) (int, error) {
	if len(l.pending) == 0 {
		if l.ended {
			return 0, io.EOF
		}
		chunk, err := l.from.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err == nil || errors.Is(err, io.EOF):
			l.ended = true
		default:
			l.err = err
			return 0, err
		}
		l.size += int64(len(chunk))
		if l.pending = chunk; len(chunk) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, l.pending)
	l.pending = l.pending[n:]
	return n, nil
}

// rest reads the line to its end.
func (l *lineReader) rest() error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{l})
	return err
}
