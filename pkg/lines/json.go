package lines

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// splitter reads JSON values one by one from a text. It holds one value at a time.
type splitter struct {
	from *bufio.Reader
	most int   // bytes that are kept of a value
	at   int64 // bytes read
	held []byte
}

// value reads the next value, without white space between its tokens except for one blank after a number or a word. The
// value is valid until the next call. Of a value that is too long only the beginning is returned, and its form is not
// checked.
func (s *splitter) value() (value []byte, long bool, err error) {
	if _, err := s.peek(); err != nil {
		return nil, false, err
	}
	start, depth := s.at, 0
	quoted, escaped, ended := false, false, false
	s.held = s.held[:0]
	for !ended {
		ahead, err := s.from.Peek(max(1, s.from.Buffered()))
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
				return nil, false, fault(s.at + int64(read))
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
				if len(s.held) == 0 || !isScalar(s.held[len(s.held)-1]) {
					continue
				}
				c = ' '
			}
			if len(s.held) < s.most {
				s.held = append(s.held, c)
			} else {
				long = true
			}
		}
		if err := s.discard(read); err != nil {
			return nil, false, err
		}
	}
	if !long && !json.Valid(s.held) {
		return nil, false, fault(start)
	}
	return s.held, long, nil
}

// array calls element before each element of the next value, which is an array. element reads the element.
func (s *splitter) array(element func() error) error { return s.list('[', ']', element) }

// object calls member before each value of the next value, which is an object. member reads the value.
func (s *splitter) object(member func(key string) error) error {
	return s.list('{', '}', func() error {
		at := s.at
		value, long, err := s.value()
		if err != nil {
			return err
		}
		var key string
		if long || value[0] != '"' || json.Unmarshal(value, &key) != nil {
			return fault(at)
		}
		if err := s.read(':'); err != nil {
			return err
		}
		return member(key)
	})
}

func (s *splitter) list(opening, closing byte, element func() error) error {
	if err := s.read(opening); err != nil {
		return err
	}
	next, err := s.peek()
	for more := next != closing; err == nil && more; {
		if err := element(); err != nil {
			return err
		}
		if next, err = s.peek(); err == nil && next != closing {
			err = s.read(',')
		}
		more = next != closing
	}
	if err != nil {
		return err
	}
	return s.read(closing)
}

// read reads white space and the character.
func (s *splitter) read(c byte) error {
	next, err := s.peek()
	if err != nil {
		return err
	}
	if next != c {
		return fault(s.at)
	}
	return s.discard(1)
}

// peek reads white space and returns the character after it. The end of the text is io.ErrUnexpectedEOF.
func (s *splitter) peek() (byte, error) {
	for {
		ahead, err := s.from.Peek(1)
		if len(ahead) == 0 {
			return 0, unexpected(err)
		}
		if !isSpace(ahead[0]) {
			return ahead[0], nil
		}
		if err := s.discard(1); err != nil {
			return 0, err
		}
	}
}

// ended reports whether only white space follows.
func (s *splitter) ended() bool {
	_, err := s.peek()
	_, end := s.from.Peek(1)
	return err != nil && errors.Is(end, io.EOF)
}

func (s *splitter) discard(n int) error {
	n, err := s.from.Discard(n)
	s.at += int64(n)
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
