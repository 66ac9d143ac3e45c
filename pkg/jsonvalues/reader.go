// Package jsonvalues reads JSON of any size value by value. Memory is bounded, whatever the text is. Errors have a position
// but no content.
package jsonvalues

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Reader reads JSON values one by one from a text. It holds one value at a time.
type Reader struct {
	from *bufio.Reader
	most int   // bytes that are kept of a value
	at   int64 // bytes read
	held []byte
}

// NewReader returns a reader of values of up to most bytes. It reads ahead.
func NewReader(from io.Reader, most int) *Reader {
	const buffered = 1 << 10 // there may be one for each line
	return &Reader{from: bufio.NewReaderSize(from, buffered), most: most}
}

// Value reads the next value, without white space between its tokens except for one blank after a number or a word. The
// value is valid until the next call. Of a value that is too long only the beginning is returned, and its form is not
// checked.
func (r *Reader) Value() (value []byte, long bool, err error) {
	if _, err := r.Peek(); err != nil {
		return nil, false, err
	}
	start, depth := r.at, 0
	quoted, escaped, ended := false, false, false
	r.held = r.held[:0]
	for !ended {
		ahead, err := r.from.Peek(max(1, r.from.Buffered()))
		if len(ahead) == 0 {
			if errors.Is(err, io.EOF) && depth == 0 && !quoted {
				break // after a number or a word
			}
			return nil, false, unexpected(err)
		}
		read := 0
		for ; read < len(ahead) && !ended; read++ {
			c := ahead[read]
			switch {
			case quoted && c < ' ':
				return nil, false, fault(r.at + int64(read))
			case escaped:
				escaped = false
			case quoted:
				escaped = c == '\\'
				quoted = c != '"'
				ended = !quoted && depth == 0
			case c == '"':
				quoted = true
			case c == '{', c == '[':
				depth++
			case depth == 0 && (c == ',' || c == ':' || c == '}' || c == ']' || isSpace(c)):
				ended = true
				read-- // it is not part of the value
				continue
			case c == '}', c == ']':
				depth--
				ended = depth == 0
			case isSpace(c):
				if len(r.held) == 0 || !isScalar(r.held[len(r.held)-1]) {
					continue
				}
				c = ' '
			}
			if len(r.held) < r.most {
				r.held = append(r.held, c)
			} else {
				long = true
			}
		}
		if err := r.discard(read); err != nil {
			return nil, false, err
		}
	}
	if !long && !json.Valid(r.held) {
		return nil, false, fault(start)
	}
	return r.held, long, nil
}

// Array calls element before each element of the next value, which is an array. element reads the element.
func (r *Reader) Array(element func() error) error { return r.list('[', ']', element) }

// Object calls member before each value of the next value, which is an object. member reads the value.
func (r *Reader) Object(member func(key string) error) error {
	return r.list('{', '}', func() error {
		at := r.at
		value, long, err := r.Value()
		if err != nil {
			return err
		}
		var key string
		if long || value[0] != '"' || json.Unmarshal(value, &key) != nil {
			return fault(at)
		}
		if err := r.read(':'); err != nil {
			return err
		}
		return member(key)
	})
}

func (r *Reader) list(opening, closing byte, element func() error) error {
	if err := r.read(opening); err != nil {
		return err
	}
	next, err := r.Peek()
	for err == nil && next != closing {
		if err := element(); err != nil {
			return err
		}
		if next, err = r.Peek(); err == nil && next != closing {
			err = r.read(',')
		}
	}
	if err != nil {
		return err
	}
	return r.read(closing)
}

// read reads white space and the character.
func (r *Reader) read(c byte) error {
	next, err := r.Peek()
	if err != nil {
		return err
	}
	if next != c {
		return fault(r.at)
	}
	return r.discard(1)
}

// Peek reads white space and returns the character after it. The end of the text is io.ErrUnexpectedEOF.
func (r *Reader) Peek() (byte, error) {
	for {
		ahead, err := r.from.Peek(1)
		if len(ahead) == 0 {
			return 0, unexpected(err)
		}
		if !isSpace(ahead[0]) {
			return ahead[0], nil
		}
		if err := r.discard(1); err != nil {
			return 0, err
		}
	}
}

// Ended reports whether only white space follows.
func (r *Reader) Ended() bool {
	_, err := r.Peek()
	_, end := r.from.Peek(1)
	return err != nil && errors.Is(end, io.EOF)
}

func (r *Reader) discard(n int) error {
	n, err := r.from.Discard(n)
	r.at += int64(n)
	return err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func fault(at int64) error { return fmt.Errorf("not valid JSON at byte %d", at) }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// isScalar reports whether the character between tokens is that of a number or a word.
func isScalar(c byte) bool {
	switch c {
	case '{', '}', '[', ']', ',', ':', '"', ' ':
		return false
	}
	return true
}
