package fhir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Facts are what an export must know of a resource.
type Facts struct {
	Type        string    // any non-empty name: whether it is a type of R4 is for the caller (IsType)
	ID          string    // a FHIR id
	LastUpdated time.Time // meta.lastUpdated in UTC; zero when absent or not an instant
	// Subjects are the local literal references at SubjectPaths(Type), to resources of any type, in the order of the
	// line, repeated as they are. Valid until the next Scan.
	Subjects []Ref
}

// Scanner reads the facts of one line at a time. It keeps its buffers between lines: one goroutine uses one Scanner.
// The zero Scanner is ready.
type Scanner struct {
	stack    []byte // the closing brackets that are still owed
	scratch  []byte // a string without its escapes
	roots    []root
	subjects []Ref
	lastType string
}

// root is a top-level member at which some type's subject path begins.
type root struct {
	name       string
	start, end int // of the value
}

// errDuplicate and the like say what is wrong with a line. They never hold any of it.
var (
	errDuplicate = errors.New("a key that decides whom the resource is about stands twice")
	errUTF8      = errors.New("not valid UTF-8")
	errNoObject  = errors.New("not a JSON object")
	errTrailing  = errors.New("more than one JSON value")
	errNoType    = errors.New("no resourceType")
	errNoID      = errors.New("no id, or not a FHIR id")
)

// maxDepth is how deep brackets may nest: as deep as encoding/json follows.
const maxDepth = 10000

// Scan reads the facts of one NDJSON line, given without its newline. It accepts what encoding/json.Valid accepts,
// and fails closed on everything that two readers could understand differently: invalid UTF-8, line breaks between
// tokens, a missing, malformed or repeated resourceType or id, and a repeated key anywhere on a subject path,
// however its letters are escaped. Errors tell what is wrong and at which byte, never content.
func (s *Scanner) Scan(line []byte) (Facts, error) {
	s.roots, s.subjects = s.roots[:0], s.subjects[:0]
	var facts Facts
	if !utf8.Valid(line) {
		return facts, errUTF8
	}
	i := space(line, 0)
	if i == len(line) || line[i] != '{' {
		return facts, errNoObject
	}
	end, err := s.members(line, i, func(key []byte, start int) (int, error) {
		return s.topLevel(&facts, line, key, start)
	})
	if err != nil {
		return Facts{}, err
	}
	if space(line, end) != len(line) {
		return Facts{}, errTrailing
	}
	if facts.Type == "" {
		return Facts{}, errNoType
	}
	if facts.ID == "" {
		return Facts{}, errNoID
	}
	for _, path := range SubjectPaths(facts.Type) {
		name, rest, _ := strings.Cut(path, ".")
		for _, r := range s.roots {
			if r.name != name {
				continue
			}
			if _, err := s.walk(line, r.start, rest); err != nil {
				return Facts{}, err
			}
		}
	}
	facts.Subjects = s.subjects
	return facts, nil
}

// topLevel takes what a member of the resource tells and returns where its value ends. The type may stand behind the
// subject, so that values of subject elements are only marked here.
func (s *Scanner) topLevel(facts *Facts, line, key []byte, start int) (int, error) {
	end, err := s.value(line, start)
	if err != nil {
		return 0, err
	}
	name := rootName(key)
	if name == "" {
		return end, nil
	}
	for _, r := range s.roots {
		if r.name == name {
			return 0, errDuplicate
		}
	}
	s.roots = append(s.roots, root{name, start, end})
	switch name {
	case "resourceType":
		text := s.text(line, start, end)
		if string(text) != s.lastType { // lines of one file are of one type: keep one string
			s.lastType = string(text)
		}
		facts.Type = s.lastType
	case "id":
		if text := s.text(line, start, end); IsID(text) {
			facts.ID = string(text)
		}
	case "meta":
		if line[start] != '{' {
			break
		}
		seen := false
		_, err = s.members(line, start, func(key []byte, start int) (int, error) {
			end, err := s.value(line, start)
			if err != nil || string(key) != "lastUpdated" {
				return end, err
			}
			if seen {
				return 0, errDuplicate
			}
			seen = true
			if at, err := time.Parse(time.RFC3339Nano, string(s.text(line, start, end))); err == nil {
				facts.LastUpdated = at.UTC()
			}
			return end, nil
		})
	}
	return end, err
}

// rootName returns key as a constant when a fact may stand below it, else "". A test holds it against subjectPaths.
func rootName(key []byte) string {
	switch string(key) {
	case "resourceType":
		return "resourceType"
	case "id":
		return "id"
	case "meta":
		return "meta"
	case "actor":
		return "actor"
	case "beneficiary":
		return "beneficiary"
	case "candidate":
		return "candidate"
	case "deliverTo":
		return "deliverTo"
	case "individual":
		return "individual"
	case "participant":
		return "participant"
	case "patient":
		return "patient"
	case "subject":
		return "subject"
	case "target":
		return "target"
	}
	return ""
}

// walk follows the rest of a subject path from the value at i, through arrays, collects the references at its end,
// and returns where the value ends.
func (s *Scanner) walk(line []byte, i int, path string) (int, error) {
	switch line[i] {
	case '[':
		i = space(line, i+1)
		if line[i] == ']' {
			return i + 1, nil
		}
		for {
			end, err := s.walk(line, i, path)
			if err != nil {
				return 0, err
			}
			end = space(line, end)
			if line[end] == ']' {
				return end + 1, nil
			}
			i = space(line, end+1)
		}
	case '{':
		wanted, rest := "reference", ""
		if path != "" {
			wanted, rest, _ = strings.Cut(path, ".")
		}
		seen := false
		return s.members(line, i, func(key []byte, start int) (int, error) {
			if string(key) != wanted {
				return s.value(line, start)
			}
			if seen {
				return 0, errDuplicate
			}
			seen = true
			if path != "" {
				return s.walk(line, start, rest)
			}
			end, err := s.value(line, start)
			if err == nil {
				s.collect(s.text(line, start, end))
			}
			return end, err
		})
	}
	return s.value(line, i)
}

// collect adds the resource that a subject reference names. Neighbouring lines are mostly about the same patient:
// the string of the line before, which still lies behind the end of the slice, is used again.
func (s *Scanner) collect(reference []byte) {
	typ, id, ok := splitReference(reference)
	if !ok {
		return
	}
	n := len(s.subjects)
	if n < cap(s.subjects) {
		s.subjects = s.subjects[:n+1]
	} else {
		s.subjects = append(s.subjects, Ref{})
	}
	ref := &s.subjects[n]
	if ref.Type != string(typ) {
		ref.Type = string(typ)
	}
	if ref.ID != string(id) {
		ref.ID = string(id)
	}
}

// text returns the string value between start and end without quotes and escapes, valid until the next call; nil
// for a value that is no string.
func (s *Scanner) text(line []byte, start, end int) []byte {
	if line[start] != '"' {
		return nil
	}
	raw := line[start+1 : end-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	s.scratch = unescape(s.scratch[:0], raw)
	return s.scratch
}

// members calls member for each member of the object that opens at i, with the key free of escapes and the place
// where its value starts. member returns the place behind the value. The result is the place behind the object.
func (s *Scanner) members(line []byte, i int, member func(key []byte, start int) (int, error)) (int, error) {
	i = space(line, i+1)
	if i < len(line) && line[i] == '}' {
		return i + 1, nil
	}
	for {
		if i >= len(line) || line[i] != '"' {
			return 0, fault("a key is missing", i)
		}
		end := stringEnd(line, i+1)
		if end < 0 {
			return 0, fault("a string is broken", i)
		}
		colon := space(line, end)
		if colon >= len(line) || line[colon] != ':' {
			return 0, fault("a colon is missing", colon)
		}
		end, err := member(s.text(line, i, end), space(line, colon+1))
		if err != nil {
			return 0, err
		}
		i = space(line, end)
		if i >= len(line) {
			return 0, fault("the line ends too early", i)
		}
		switch line[i] {
		case '}':
			return i + 1, nil
		case ',':
			i = space(line, i+1)
		default:
			return 0, fault("a comma is missing", i)
		}
	}
}

// value checks the JSON value that starts at i, without recursion, and returns the place behind it.
func (s *Scanner) value(line []byte, i int) (int, error) {
	stack := s.stack[:0]
	defer func() { s.stack = stack }()
	for {
		// A value begins here.
		if i >= len(line) {
			return 0, fault("the line ends too early", i)
		}
		switch c := line[i]; c {
		case '"':
			end := stringEnd(line, i+1)
			if end < 0 {
				return 0, fault("a string is broken", i)
			}
			i = end
		case '{', '[':
			if len(stack) == maxDepth-1 { // the resource itself is one more
				return 0, fault("nested too deeply", i)
			}
			closer := c + 2 // in ASCII a closing bracket stands two behind its opening one
			i = space(line, i+1)
			if i < len(line) && line[i] == closer {
				i++
				break
			}
			stack = append(stack, closer)
			if c == '[' {
				continue
			}
			start, problem := key(line, i)
			if problem != "" {
				return 0, fault(problem, start)
			}
			i = start
			continue
		default:
			end := scalarEnd(line, i)
			if end < 0 {
				return 0, fault("not a JSON value", i)
			}
			i = end
		}
		// A value ended here: close what it ends, up to the comma that announces the next.
		for {
			if len(stack) == 0 {
				return i, nil
			}
			i = space(line, i)
			if i >= len(line) {
				return 0, fault("the line ends too early", i)
			}
			closer := stack[len(stack)-1]
			if line[i] == closer {
				stack = stack[:len(stack)-1]
				i++
				continue
			}
			if line[i] != ',' {
				return 0, fault("a comma or a bracket is missing", i)
			}
			i = space(line, i+1)
			if closer == '}' {
				start, problem := key(line, i)
				if problem != "" {
					return 0, fault(problem, start)
				}
				i = start
			}
			break
		}
	}
}

// key checks the key and the colon at i and returns where the value starts; else where and what the problem is.
func key(line []byte, i int) (start int, problem string) {
	if i >= len(line) || line[i] != '"' {
		return i, "a key is missing"
	}
	end := stringEnd(line, i+1)
	if end < 0 {
		return i, "a string is broken"
	}
	end = space(line, end)
	if end >= len(line) || line[end] != ':' {
		return end, "a colon is missing"
	}
	return space(line, end+1), ""
}

func fault(what string, at int) error { return fmt.Errorf("not valid JSON at byte %d: %s", at, what) }

// space returns the place of the first byte from i on that is not white space. Line breaks are no white space here:
// a line that holds one would be two lines for some readers.
func space(line []byte, i int) int {
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	return i
}

// stringEnd returns the place behind the closing quote of the string whose content starts at i, or -1. It looks at
// eight bytes at once: the lowest bit set in stop marks the first byte that is a quote, a backslash or a control
// character (higher ones may be wrong, by the borrow of the subtraction).
func stringEnd(line []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for {
		for i+8 <= len(line) {
			word := binary.LittleEndian.Uint64(line[i:])
			quote, escape := word^ones*'"', word^ones*'\\'
			stop := ((quote-ones)&^quote | (escape-ones)&^escape | (word-ones*0x20)&^word) & highs
			if stop != 0 {
				i += bits.TrailingZeros64(stop) / 8
				break
			}
			i += 8
		}
		for i < len(line) && line[i] != '"' && line[i] != '\\' && line[i] >= ' ' {
			i++
		}
		if i >= len(line) || line[i] < ' ' {
			return -1
		}
		if line[i] == '"' {
			return i + 1
		}
		if i+1 >= len(line) {
			return -1
		}
		switch line[i+1] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i += 2
		case 'u':
			if i+6 > len(line) {
				return -1
			}
			for _, c := range line[i+2 : i+6] {
				if hexDigit(c) < 0 {
					return -1
				}
			}
			i += 6
		default:
			return -1
		}
	}
}

// scalarEnd returns the place behind the number, true, false or null at i, or -1.
func scalarEnd(line []byte, i int) int {
	rest := line[i:]
	for _, word := range [...]string{"true", "false", "null"} {
		if len(rest) >= len(word) && string(rest[:len(word)]) == word {
			return i + len(word)
		}
	}
	if i < len(line) && line[i] == '-' {
		i++
	}
	from := i
	i = digits(line, i)
	if i == from || line[from] == '0' && i > from+1 {
		return -1
	}
	if i < len(line) && line[i] == '.' {
		from = i + 1
		if i = digits(line, from); i == from {
			return -1
		}
	}
	if i < len(line) && (line[i] == 'e' || line[i] == 'E') {
		i++
		if i < len(line) && (line[i] == '+' || line[i] == '-') {
			i++
		}
		from = i
		if i = digits(line, from); i == from {
			return -1
		}
	}
	return i
}

func digits(line []byte, i int) int {
	for i < len(line) && line[i] >= '0' && line[i] <= '9' {
		i++
	}
	return i
}

func hexDigit(c byte) rune {
	switch {
	case c >= '0' && c <= '9':
		return rune(c - '0')
	case c >= 'a' && c <= 'f':
		return rune(c - 'a' + 10)
	case c >= 'A' && c <= 'F':
		return rune(c - 'A' + 10)
	}
	return -1
}

// unescape appends the text of a checked string to dst. A surrogate without its other half becomes U+FFFD, as in
// encoding/json.
func unescape(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hexRune(raw[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				var low rune = utf8.RuneError
				if i+6 < len(raw) && raw[i+1] == '\\' && raw[i+2] == 'u' {
					low = hexRune(raw[i+3:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // a quote, a backslash or a slash stands for itself
			dst = append(dst, raw[i])
		}
	}
	return dst
}

func hexRune(digits []byte) rune {
	var r rune
	for _, c := range digits[:4] {
		r = r<<4 | hexDigit(c)
	}
	return r
}

// References calls yield for every local literal reference anywhere in the line, contained resources and extensions
// included, until it returns false: each string value of a key named "reference" that ParseReference understands. The
// line is one that Scan accepted; of any other it yields what it can make out.
func References(line []byte, yield func(Ref) bool) {
	var s Scanner
	// Without escapes every place where the quoted key stands is a whole string, and the search may jump to it.
	sought := []byte(`"reference"`)
	if bytes.IndexByte(line, '\\') >= 0 {
		sought = sought[:1]
	}
	for i := 0; ; {
		next := bytes.Index(line[i:], sought)
		if next < 0 {
			return
		}
		i += next
		end := stringEnd(line, i+1)
		if end < 0 {
			return
		}
		name := line[i+1 : end-1]
		i = end
		// The cheap questions first: most strings are neither of this length nor escaped.
		if len(name) != len("reference") && bytes.IndexByte(name, '\\') < 0 {
			continue
		}
		colon := space(line, end)
		if colon >= len(line) || line[colon] != ':' {
			continue
		}
		if string(s.text(line, end-len(name)-2, end)) != "reference" {
			continue
		}
		start := space(line, colon+1)
		if start >= len(line) || line[start] != '"' {
			continue
		}
		if end = stringEnd(line, start+1); end < 0 {
			return
		}
		i = end
		if typ, id, ok := splitReference(s.text(line, start, end)); ok {
			if !yield(Ref{Type: string(typ), ID: string(id)}) {
				return
			}
		}
	}
}
