package fhir

import (
	"encoding/json"
	"strings"
)

// Ref names one resource.
type Ref struct{ Type, ID string }

// maxID is the longest id that FHIR allows.
const maxID = 64

// IsID reports whether s has the form of a FHIR id: 1 to 64 of A-Z, a-z, 0-9, "-" and "." (R4 datatypes, id).
func IsID[T string | []byte](s T) bool {
	if len(s) == 0 || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

// ParseReference reads a literal reference to a resource: Patient/1, Patient/1/_history/2, and both below any http or
// https base (conformance 14.1 note 7). The base is ignored. It returns false for contained (#x), urn:, conditional
// (Patient?identifier=) and logical references, unknown types and malformed ids.
func ParseReference(ref string) (Ref, bool) {
	typ, id, ok := splitReference(ref)
	if !ok {
		return Ref{}, false
	}
	return Ref{Type: typ, ID: id}, true
}

func splitReference[T string | []byte](ref T) (typ, id T, ok bool) {
	rest, absolute := ref, false
	for _, scheme := range [...]string{"http://", "https://"} {
		if len(ref) > len(scheme) && strings.EqualFold(string(ref[:len(scheme)]), scheme) {
			rest, absolute = ref[len(scheme):], true
		}
	}
	rest, last := cutLast(rest)
	if len(last) == len(ref) || !IsID(last) {
		return typ, id, false
	}
	before, word := cutLast(rest)
	if string(word) == "_history" {
		rest, last = cutLast(before)
		before, word = cutLast(rest)
	}
	// The base before the type has at least a host when absolute, and is empty when relative.
	if absolute != (len(before) > 0) || !absolute && len(word) != len(rest) || !IsID(last) || !IsType(string(word)) {
		return typ, id, false
	}
	for i := range len(before) {
		if c := before[i]; c <= ' ' || c == '?' || c == '#' {
			return typ, id, false
		}
	}
	return word, last, true
}

// cutLast splits at the last slash. Without a slash the last part is s.
func cutLast[T string | []byte](s T) (before, last T) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return s[:i], s[i+1:]
		}
	}
	return s[:0], s
}

// CountTargets returns the number of targets of a Provenance, including those that ParseReference does not understand: a
// urn or an identifier may be a patient. Scan must have accepted the line.
func CountTargets(provenance []byte) int {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(provenance, &members); err != nil {
		return 0
	}
	var targets []json.RawMessage
	if err := json.Unmarshal(members["target"], &targets); err != nil {
		return 1
	}
	return len(targets)
}
