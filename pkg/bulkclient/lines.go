package bulkclient

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// lines checks NDJSON that is written to it in pieces: every line must be a resource of one type, and there must not be
// more of them than announced. It keeps no line, so memory does not depend on their lengths (pitfall 45). Of a line that
// begins with its resourceType, as Sluice's lines do, it scans no more. Blank lines and a byte order mark are skipped.
type lines struct {
	typ       string               // "" until the first line of a file without a type, and of a mixed one
	mixed     bool                 // lines of several types in blocks, each with a Parameters resource as its header (P-37)
	headers   int64                // of the finished lines of a mixed file
	each      func(l *lines) error // called at the end of a line, before it is counted; nil: not needed
	announced int64                // number of lines, -1 when unknown
	scan      scan                 // of the line
	last      byte                 // of the line, other than white space; 0 when there is none
	count     int64                // finished lines
	size      int64                // bytes of the line, and of the blank ones before it
	offset    int64                // bytes of the finished lines
}

// maxLine is the most bytes of a line: the largest SLUICE_MAX_LINE. An endless line, or endless blank ones, would fill the
// disk although the number of lines is announced.
const maxLine = 1 << 28

// newLines returns a check for a type, or for any one type if it is "".
func newLines(typ string, announced int64) *lines { return &lines{typ: typ, announced: announced} }

// linesOf returns a check of a file.
func linesOf(file File, announced int64) *lines {
	l := newLines(file.Type, announced)
	l.mixed = file.Mixed
	return l
}

// resources returns the number of finished lines that are no headers.
func (l *lines) resources() int64 { return l.count - l.headers }

// is reports whether this many lines were announced. STU3 leaves open whether the count of a mixed file has the headers.
func (l *lines) is(announced int64) bool { return l.count == announced || l.resources() == announced }

// Write checks the next piece.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		piece, rest, ended := bytes.Cut(p, []byte{'\n'})
		if l.size += int64(len(p) - len(rest)); l.size > maxLine {
			return 0, fmt.Errorf("%w: line %d is longer than %d bytes", ErrMismatch, l.count+1, maxLine)
		}
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

// Close ends the last line, which needs no newline, and compares the number of lines with the announced one.
func (l *lines) Close() error {
	if err := l.end(); err != nil {
		return err
	}
	if l.announced >= 0 && !l.is(l.announced) {
		return fmt.Errorf("%w: it has %d resources, not %d", ErrMismatch, l.resources(), l.announced)
	}
	return nil
}

func (l *lines) add(piece []byte) error {
	if trimmed := bytes.TrimRight(piece, " \t\r"); len(trimmed) > 0 {
		l.last = trimmed[len(trimmed)-1]
	}
	l.scan.needID = l.each != nil
	if !l.scan.write(piece, l.count == 0) {
		return fmt.Errorf("%w: line %d is not a JSON object", ErrMismatch, l.count+1)
	}
	if l.scan.begun && l.announced >= 0 && l.resources() >= l.announced && (!l.mixed || l.resources() > l.announced) {
		return fmt.Errorf("%w: it has more than the announced %d resources", ErrMismatch, l.announced)
	}
	return nil
}

func (l *lines) end() error {
	if l.last == 0 {
		return nil
	}
	line := l.count + 1
	if l.typ == "" && !l.mixed && safeType.MatchString(l.scan.typ) {
		l.typ = l.scan.typ
	}
	switch {
	case !l.scan.begun: // a byte order mark alone
		l.last = 0
		return nil
	case l.last != '}' || !l.scan.done && l.scan.depth > 0:
		return fmt.Errorf("%w: line %d is cut short", ErrMismatch, line)
	case l.scan.typ == "":
		return fmt.Errorf("%w: line %d has no resourceType", ErrMismatch, line)
	case l.mixed && !safeType.MatchString(l.scan.typ):
		return fmt.Errorf("%w: line %d is of type %q", ErrMismatch, line, printable(l.scan.typ))
	case l.mixed:
		if l.scan.typ == "Parameters" {
			l.headers++
		}
	case l.scan.typ != l.typ:
		return fmt.Errorf("%w: line %d is of type %q, not %s", ErrMismatch, line, printable(l.scan.typ), l.typ)
	}
	if l.each != nil {
		if err := l.each(l); err != nil {
			return err
		}
	}
	l.offset += l.size
	l.count, l.size, l.last, l.scan = line, 0, 0, scan{text: l.scan.text[:0]}
	return nil
}

// scan finds the resourceType of a JSON object that is written to it in pieces, and its id if that is needed.
type scan struct {
	needID  bool
	typ, id string // once they are found
	first   bool   // the type is the first member
	done    bool   // the rest is not scanned
	begun   bool   // the object has begun
	depth   int    // of the brackets

	quoted, escaped bool    // inside of a string
	later           bool    // a comma came at depth 1
	value           bool    // at depth 1: after the colon
	found           *string // at depth 1: where the value goes; nil: it is not needed
	text            []byte  // of a string at depth 1, raw and bounded
}

// write returns false if the text cannot be an object. marked allows a byte order mark before it.
func (s *scan) write(p []byte, marked bool) bool {
	for i := 0; i < len(p) && !s.done; i++ {
		if s.quoted {
			if s.escaped {
				s.escaped = false
				s.keep(p[i : i+1])
				continue
			}
			n := bytes.IndexAny(p[i:], `"\`)
			if n < 0 {
				s.keep(p[i:])
				return true
			}
			s.keep(p[i : i+n])
			if i += n; p[i] == '\\' {
				s.escaped = true
				s.keep(p[i : i+1])
			} else {
				s.quoted = false
				s.unquote()
			}
			continue
		}
		switch c := p[i]; c {
		case ' ', '\t', '\r':
		case '{', '[':
			if s.depth == 0 && (s.begun || c == '[') {
				return false
			}
			s.begun = true
			s.depth++
		case '}', ']':
			if s.depth--; s.depth < 0 {
				return false
			}
		case '"':
			if s.depth == 0 {
				return false
			}
			s.quoted, s.text = true, s.text[:0]
		case ',':
			if s.depth == 1 {
				s.later, s.value, s.found = true, false, nil
			}
		case ':':
			s.value = s.value || s.depth == 1
		default:
			if s.depth == 0 && (s.begun || !marked || c < 0xbb) { // 0xef 0xbb 0xbf is the mark
				return false
			}
		}
	}
	return true
}

// longestName bounds the text that is kept of a string: none that is longer is looked for.
const longestName = 128

func (s *scan) keep(p []byte) {
	if s.depth == 1 && (!s.value || s.found != nil) {
		s.text = append(s.text, p[:min(len(p), longestName-len(s.text))]...)
	}
}

// unquote ends a string.
func (s *scan) unquote() {
	if s.depth != 1 || s.value && s.found == nil {
		return
	}
	var text string
	if json.Unmarshal([]byte(`"`+string(s.text)+`"`), &text) != nil {
		return // a name as long as that is another one
	}
	switch {
	case !s.value && text == "resourceType":
		s.found = &s.typ
	case !s.value && text == "id" && s.needID:
		s.found = &s.id
	case !s.value:
		s.found = nil
	case *s.found == "":
		*s.found = text
		s.first = s.first || s.found == &s.typ && !s.later
		s.done = s.first && (!s.needID || s.id != "")
	}
}
