package bulkclient

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// maxHead bounds how much of a line is kept to find its type when the line does not begin with it.
const maxHead = 16 << 20

// lines checks NDJSON that is written to it in pieces: every line must be a resource of one type. It keeps nothing of a
// line that begins with its resourceType, as Sluice's lines do, so memory does not depend on the length of lines.
type lines struct {
	typ     string
	prefix  []byte
	head    []byte // the line so far, while its type is not known
	decided bool   // the line has the right type
	begun   bool   // the line has a byte
	last    byte   // of the line
	count   int64  // finished lines
}

func newLines(typ string) *lines {
	return &lines{typ: typ, prefix: []byte(`{"resourceType":"` + typ + `"`)}
}

// Write checks the next piece.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		piece, rest, ended := bytes.Cut(p, []byte{'\n'})
		if err := l.add(piece); err != nil {
			return 0, err
		}
		if ended {
			if err := l.end(); err != nil {
				return 0, err
			}
		}
		p = rest
	}
	return n, nil
}

// Close ends the last line, which needs no newline, and compares the number of lines with the announced one (-1: none).
func (l *lines) Close(announced int64) error {
	if l.begun {
		if err := l.end(); err != nil {
			return err
		}
	}
	if announced >= 0 && l.count != announced {
		return fmt.Errorf("%w: it has %d resources, not %d", ErrMismatch, l.count, announced)
	}
	return nil
}

func (l *lines) add(piece []byte) error {
	if len(piece) == 0 {
		return nil
	}
	l.begun, l.last = true, piece[len(piece)-1]
	if l.decided {
		return nil
	}
	if len(l.head) == 0 && bytes.HasPrefix(piece, l.prefix) {
		l.decided = true
		return nil
	}
	if len(l.head)+len(piece) > maxHead {
		return fmt.Errorf("%w: line %d is too long to find its type", ErrMismatch, l.count+1)
	}
	l.head = append(l.head, piece...)
	l.decided = bytes.HasPrefix(l.head, l.prefix)
	return nil
}

func (l *lines) end() error {
	line := l.count + 1
	if !l.begun {
		return fmt.Errorf("%w: line %d is empty", ErrMismatch, line)
	}
	if !l.decided {
		var resource struct {
			ResourceType string `json:"resourceType"`
		}
		if json.Unmarshal(l.head, &resource) != nil {
			return fmt.Errorf("%w: line %d is not a JSON object", ErrMismatch, line)
		}
		if resource.ResourceType != l.typ {
			return fmt.Errorf("%w: line %d is of type %q, not %s", ErrMismatch, line, printable(resource.ResourceType), l.typ)
		}
	} else if l.last != '}' && l.last != '\r' {
		return fmt.Errorf("%w: line %d is cut short", ErrMismatch, line)
	}
	l.count, l.head, l.decided, l.begun = line, l.head[:0], false, false
	return nil
}
