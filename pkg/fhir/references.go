package fhir

import (
	"bytes"
	"cmp"
	"slices"
)

// References calls yield for every local literal reference in the line, including contained resources and extensions,
// until yield returns false: each string value of a key "reference" that ParseReference understands. Scan must
// have accepted the line; in any other line References may miss some.
func References(line []byte, yield func(Ref) bool) {
	eachReference(line, func(_ span, text []byte) bool {
		typ, id, form := Classify(text)
		return form != Local || yield(Ref{Type: string(typ), ID: string(id)})
	})
}

// EachReference calls yield for every reference in the line, of any form, until yield returns false. The line is as for
// References; text is valid until yield returns.
func EachReference(line []byte, yield func(text []byte) bool) {
	eachReference(line, func(_ span, text []byte) bool { return yield(text) })
}

// CountReferences returns the number of references in the line, of any form, up to limit+1.
func CountReferences(line []byte, limit int) int {
	if len(line) < limit*len(`"reference":""`) {
		return 0 // the line is too short to exceed the limit
	}
	n := 0
	eachReference(line, func(span, []byte) bool { n++; return n <= limit })
	return n
}

// Expected is what a reference may name.
type Expected struct {
	Subject bool // a patient, if it names anything: it is at a subject path, but not a target of a Provenance
	// Type is Reference.type, or else Patient where R4 allows nothing else. "" is any type; one that is not of R4 is none. It
	// is only known at subject paths.
	Type string
}

// expected is what the reference at a position may name.
type expected struct {
	start int
	Expected
}

// Resolve rewrites references of the line: replace returns the Type/id for the text of a reference that is not a local
// literal one, or "" to leave it. The result is line itself if nothing changes, else it is appended to buffer. facts are
// those of the line.
func Resolve(
	buffer, line []byte, facts Facts, replace func(text []byte, form Form, of Expected) string,
) (resolved []byte, changed bool) {
	from := 0
	out := buffer
	byStart := func(e expected, start int) int { return cmp.Compare(e.start, start) }
	known := slices.Clone(facts.expected) // sorted, so that the time is not quadratic in the subjects
	slices.SortFunc(known, func(a, b expected) int { return byStart(a, b.start) })
	eachReference(line, func(at span, text []byte) bool {
		_, _, form := Classify(text)
		if form == Local || form == Contained || form == Invalid {
			return true
		}
		var of Expected
		if i, found := slices.BinarySearchFunc(known, at.start, byStart); found {
			of = known[i].Expected
		}
		if literal := replace(text, form, of); literal != "" {
			out = append(append(append(append(out, line[from:at.start]...), '"'), literal...), '"')
			from = at.end
		}
		return true
	})
	if from == 0 {
		return line, false
	}
	return append(out, line[from:]...), true
}

// Identifiers calls yield for each Identifier of the resource. Scan must have accepted the line.
func Identifiers(line []byte, yield func(system, value string)) {
	names := []string{"system", "value"}
	var one func(i int) (int, error)
	one = func(i int) (int, error) {
		switch line[i] {
		case '[':
			return elements(line, i, one)
		case '{':
			var found [2]span
			_, err := fields(line, i, names, found[:])
			if err == nil && found[1].end > 0 {
				yield(string(found[0].text(line)), string(found[1].text(line)))
			}
		}
		return value(line, i, 1) // also of one that is malformed
	}
	_, _ = members(line, space(line, 0), func(key []byte, start int) (int, error) { // Scan has accepted the line
		if string(key) != "identifier" {
			return value(line, start, 1)
		}
		return one(start)
	})
}

// eachReference calls yield for each string value of a key "reference", with its position and its text, until yield
// returns false.
func eachReference(line []byte, yield func(at span, text []byte) bool) {
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
		if !yield(span{start, end}, unquote(line, start, end)) {
			return
		}
	}
}
