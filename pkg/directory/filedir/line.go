package filedir

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const bufferSize = 64 << 10 // bytes

// lineReader reads one line at a time, of any length, as a stream that ends where the line ends.
type lineReader struct {
	from    *bufio.Reader
	offset  int64 // of the line
	size    int64 // bytes of it that were read, its newline included
	pending []byte
	ended   bool
	err     error // why the source cannot be read
}

// next moves to the next line and reports whether there is one. The line before must have been read to its end.
func (l *lineReader) next() bool {
	l.offset, l.size, l.ended, l.pending = l.offset+l.size, 0, false, nil
	if l.err != nil {
		return false
	}
	if _, err := l.from.Peek(1); err != nil {
		if !errors.Is(err, io.EOF) {
			l.err = err
		}
		return false
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

// eachElement calls f for each element of the object that comes next, with the decoder standing before its value,
// until f says that there is no need for more. io.EOF means that nothing comes at all.
func eachElement(dec *json.Decoder, f func(name string) (more bool, err error)) error {
	start, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil || start != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return errNotJSON
		}
		if more, err := f(name); err != nil || !more {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errNotJSON
	}
	return nil
}

// errNotJSON stands for the decoder's own errors, which quote the line.
var errNotJSON = errors.New("not valid JSON")

// decode reads the value that comes next.
func decode(dec *json.Decoder, name string, to any) error {
	err := dec.Decode(to)
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mistyped):
		return fmt.Errorf("%s has a value of the wrong type", name)
	case err != nil:
		return errNotJSON
	}
	return nil
}

func skip(dec *json.Decoder) error {
	var passed json.RawMessage
	return decode(dec, "", &passed)
}
