package fhir

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
	"unicode/utf8"
)

// Facts are the fields of a resource that an export needs.
type Facts struct {
	Type        string    // any non-empty name; the caller checks IsType
	ID          string    // a FHIR id
	LastUpdated time.Time // meta.lastUpdated in UTC; zero when absent or not an instant
	// Subjects are the local literal references at SubjectPaths(Type), to resources of any type, in the order of the
	// line, with duplicates. Valid until the next Scan.
	Subjects []Ref
}

// Scanner reads the facts of one line at a time. It reuses its buffers, so each goroutine needs its own. The zero Scanner
// is ready to use.
type Scanner struct {
	roots    []root
	subjects []Ref
	lastType string
}

// root is a top-level member that a fact is read from.
type root struct {
	name       string
	start, end int // of the value
}

// Errors never contain content of the line.
var (
	errDuplicate = errors.New("a key on the path to type, id, lastUpdated or subject is duplicate")
	errUTF8      = errors.New("not valid UTF-8")
	errNoObject  = errors.New("not a JSON object")
	errTrailing  = errors.New("more than one JSON value")
	errNoType    = errors.New("no resourceType")
	errNoID      = errors.New("no id, or not a FHIR id")
)

// maxDepth is the maximum nesting of brackets, as in encoding/json.
const maxDepth = 10000

// Scan reads the facts of one NDJSON line, without its newline. It accepts what encoding/json.Valid accepts, and fails
// closed on everything that two parsers could read differently: invalid UTF-8, line breaks between tokens, a missing,
// malformed or duplicate resourceType or id, and a duplicate key on a subject path, escaped or not. Errors have a reason
// and a position, never content.
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
	end, err := members(line, i, func(key []byte, start int) (int, error) {
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
		rest = strings.TrimPrefix(rest+".reference", ".")
		for _, r := range s.roots {
			if r.name != name {
				continue
			}
			if _, err := walk(line, r.start, rest, s.collect); err != nil {
				return Facts{}, err
			}
		}
	}
	facts.Subjects = s.subjects
	return facts, nil
}

// topLevel reads the facts of one member of the resource and returns the end of its value. The type may come after the
// subject, so it only marks the values of subject elements.
func (s *Scanner) topLevel(facts *Facts, line, key []byte, start int) (int, error) {
	end, err := value(line, start, 1)
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
		text := unquote(line, start, end)
		if string(text) != s.lastType { // adjacent lines mostly have one type: reuse the string
			s.lastType = string(text)
		}
		facts.Type = s.lastType
	case "id":
		if text := unquote(line, start, end); IsID(text) {
			facts.ID = string(text)
		}
	case "meta":
		if line[start] == '{' {
			_, err = walk(line, start, "lastUpdated", func(text []byte) {
				if at, err := time.Parse(time.RFC3339Nano, string(text)); err == nil {
					facts.LastUpdated = at.UTC()
				}
			})
		}
	}
	return end, err
}

// rootName returns key as a constant when a fact may be below it, else "". A test compares it with subjectPaths.
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

// walk follows a path of keys from the value at i, through arrays, calls found with each value at its end (nil for a
// value that is not a string), and returns the end of the value at i. The value has been checked before.
func walk(line []byte, i int, path string, found func(text []byte)) (int, error) {
	switch line[i] {
	case '[':
		i = space(line, i+1)
		if line[i] == ']' {
			return i + 1, nil
		}
		for {
			end, err := walk(line, i, path, found)
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
		wanted, rest, further := strings.Cut(path, ".")
		seen := false
		return members(line, i, func(key []byte, start int) (int, error) {
			if string(key) != wanted {
				return value(line, start, 1)
			}
			if seen {
				return 0, errDuplicate
			}
			seen = true
			if further {
				return walk(line, start, rest, found)
			}
			end, err := value(line, start, 1)
			if err == nil {
				found(unquote(line, start, end))
			}
			return end, err
		})
	}
	return value(line, i, 1)
}

// collect appends the resource that a subject reference names. Adjacent lines are mostly about the same patient, so it
// reuses the string of the previous line, which is still in the spare capacity of the slice.
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

// unquote returns the text of the string value between start and end, nil for a value that is not a string.
func unquote(line []byte, start, end int) []byte {
	if line[start] != '"' {
		return nil
	}
	if raw := line[start+1 : end-1]; bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	var text string
	if err := json.Unmarshal(line[start:end], &text); err != nil { // stringEnd has checked it
		return nil
	}
	return []byte(text)
}

// members calls member for each member of the object that opens at i, with the unquoted key and the start of its value.
// member returns the end of the value. members returns the end of the object.
func members(line []byte, i int, member func(key []byte, start int) (int, error)) (int, error) {
	i = space(line, i+1)
	if i < len(line) && line[i] == '}' {
		return i + 1, nil
	}
	for {
		keyEnd, start, err := key(line, i)
		if err != nil {
			return 0, err
		}
		end, err := member(unquote(line, i, keyEnd), start)
		if err != nil {
			return 0, err
		}
		i = space(line, end)
		if i >= len(line) {
			return 0, fault(cutOff, i)
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

// value checks the JSON value that starts at i, below depth open brackets, and returns its end.
func value(line []byte, i, depth int) (int, error) {
	if i >= len(line) {
		return 0, fault(cutOff, i)
	}
	open := line[i]
	switch {
	case open == '"':
		end := stringEnd(line, i+1)
		if end < 0 {
			return 0, fault("a string is broken", i)
		}
		return end, nil
	case open != '{' && open != '[':
		end := scalarEnd(line, i)
		if end < 0 {
			return 0, fault("not a JSON value", i)
		}
		return end, nil
	case depth == maxDepth:
		return 0, fault("nested too deeply", i)
	}
	closer := open + 2 // in ASCII a closing bracket is two after its opening one
	i = space(line, i+1)
	if i < len(line) && line[i] == closer {
		return i + 1, nil
	}
	for {
		var err error
		if open == '{' {
			if _, i, err = key(line, i); err != nil {
				return 0, err
			}
		}
		if i, err = value(line, i, depth+1); err != nil {
			return 0, err
		}
		i = space(line, i)
		switch {
		case i >= len(line):
			return 0, fault(cutOff, i)
		case line[i] == closer:
			return i + 1, nil
		case line[i] != ',':
			return 0, fault("a comma or a bracket is missing", i)
		}
		i = space(line, i+1)
	}
}

// key checks the key and the colon at i and returns the end of the key and the start of the value.
func key(line []byte, i int) (end, start int, err error) {
	if i >= len(line) || line[i] != '"' {
		return 0, 0, fault("a key is missing", i)
	}
	if end = stringEnd(line, i+1); end < 0 {
		return 0, 0, fault("a string is broken", i)
	}
	colon := space(line, end)
	if colon >= len(line) || line[colon] != ':' {
		return 0, 0, fault("a colon is missing", colon)
	}
	return end, space(line, colon+1), nil
}

const cutOff = "the line ends too early"

func fault(what string, at int) error { return fmt.Errorf("not valid JSON at byte %d: %s", at, what) }

// space returns the position of the first byte from i on that is not white space. A line break is not white space here,
// because some readers would end the line there.
func space(line []byte, i int) int {
	for i < len(line) && (line[i] == ' ' || line[i] == '\t') {
		i++
	}
	return i
}

// stringEnd returns the position after the closing quote of the string whose content starts at i, or -1. It tests eight
// bytes at once: the lowest bit set in stop marks the first quote, backslash or control character (higher bits may be
// wrong because of the borrow of the subtraction).
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
				if strings.IndexByte("0123456789abcdefABCDEF", c) < 0 {
					return -1
				}
			}
			i += 6
		default:
			return -1
		}
	}
}

// scalarEnd returns the position after the number, true, false or null at i, or -1.
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

// References calls yield for every local literal reference in the line, including contained resources and extensions,
// until yield returns false: each string value of a key "reference" that ParseReference understands. Scan must
// have accepted the line; in any other line References may miss some.
func References(line []byte, yield func(Ref) bool) {
	// Without escapes each occurrence of the quoted key is a whole string, so the search can jump to it.
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
		// Cheap tests first: most strings are neither of this length nor escaped.
		if len(name) != len("reference") && bytes.IndexByte(name, '\\') < 0 {
			continue
		}
		colon := space(line, end)
		if colon >= len(line) || line[colon] != ':' {
			continue
		}
		if string(unquote(line, end-len(name)-2, end)) != "reference" {
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
		if typ, id, ok := splitReference(unquote(line, start, end)); ok {
			if !yield(Ref{Type: string(typ), ID: string(id)}) {
				return
			}
		}
	}
}
