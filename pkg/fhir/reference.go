package fhir

import (
	"fmt"
	"net/url"
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

// Form is the form of a reference string (R4 2.3.0).
type Form int

// The forms of references. Only Local names a resource of this service as it stands; Urn, Conditional and Foreign ones are
// resolved when data is loaded or indexed, where they can be (spec 10).
const (
	Invalid     Form = iota // none of the others
	Local                   // Patient/1, Patient/1/_history/2, either with a fragment or a leading slash
	Foreign                 // the same below an http or https base, or any other http or https URL
	Urn                     // urn:uuid:..., urn:oid:...
	Conditional             // Patient?identifier=system|value
	Contained               // #x
)

// ParseReference reads a local literal reference. Types are those of R4.
func ParseReference(ref string) (Ref, bool) {
	typ, id, form := Classify(ref)
	if form != Local {
		return Ref{}, false
	}
	return Ref{Type: typ, ID: id}, true
}

// Classify returns the form of a reference. typ and id are those of a Local reference and of a Foreign one to a resource;
// of a Conditional one and of an Invalid one that begins like a Local one only typ is set.
func Classify[T string | []byte](ref T) (typ, id T, form Form) {
	rest := ref
	switch {
	case hasPrefixFold(ref, "http://"), hasPrefixFold(ref, "https://"):
		typ, id, _ = literal(beforeFragment(afterScheme(ref)), true)
		return typ, id, Foreign
	case hasPrefixFold(ref, "urn:"):
		if hasPrefixFold(ref, "urn:uuid:") || hasPrefixFold(ref, "urn:oid:") {
			return typ, id, Urn
		}
		return typ, id, Invalid
	case len(ref) > 0 && ref[0] == '#':
		return typ, id, Contained
	case len(ref) > 0 && ref[0] == '/':
		rest = ref[1:]
	}
	for i := range len(rest) {
		if rest[i] == '?' {
			if typ = rest[:i]; IsType(string(typ)) {
				return typ, id, Conditional
			}
			return ref[:0], id, Invalid
		}
	}
	typ, id, ok := literal(beforeFragment(rest), false)
	if ok {
		return typ, id, Local
	}
	return typ, ref[:0], Invalid
}

// literal reads Type/id or Type/id/_history/version. With a base anything with a host may precede it. If the id is not
// valid, the type is returned nevertheless.
func literal[T string | []byte](ref T, based bool) (typ, id T, ok bool) {
	rest, last := cutLast(ref)
	if len(last) == len(ref) {
		return typ, id, false
	}
	before, word := cutLast(rest)
	if string(word) == "_history" && IsID(last) {
		rest, last = cutLast(before)
		before, word = cutLast(rest)
	}
	if !IsType(string(word)) || based != (len(before) > 0) || !based && len(word) != len(rest) {
		return typ, id, false
	}
	for i := range len(before) {
		if c := before[i]; c <= ' ' || c == '?' || c == '#' {
			return typ, id, false
		}
	}
	if !IsID(last) {
		return word, id, false
	}
	return word, last, true
}

func hasPrefixFold[T string | []byte](s T, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(string(s[:len(prefix)]), prefix)
}

func afterScheme[T string | []byte](url T) T {
	for i := range len(url) {
		if url[i] == ':' {
			return url[i+len("://"):]
		}
	}
	return url
}

func beforeFragment[T string | []byte](ref T) T {
	for i := range len(ref) {
		if ref[i] == '#' {
			return ref[:i]
		}
	}
	return ref
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

// Bases are the base URLs whose resources are those of this service.
type Bases []string

// NewBases returns the bases without slashes at their ends. It refuses what is not an absolute http or https URL. The
// error does not quote it: it may be a URL with a password that is in the wrong place.
func NewBases(urls ...string) (Bases, error) {
	var bases Bases
	for i, text := range urls {
		base, err := url.Parse(text)
		if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.User != nil ||
			base.RawQuery != "" || base.Fragment != "" {
			return nil, fmt.Errorf("base %d is not an absolute http or https URL without user, query and fragment", i+1)
		}
		base.Host = strings.ToLower(base.Host)
		bases = append(bases, strings.TrimRight(base.String(), "/"))
	}
	return bases, nil
}

// Literal returns the local resource that a Foreign reference below one of the bases names.
func (b Bases) Literal(ref string) (Ref, bool) {
	ref = beforeFragment(ref)
	for _, base := range b {
		host := strings.IndexByte(base, ':') + len("://")
		if end := strings.IndexByte(base[host:], '/'); end >= 0 {
			host += end
		} else {
			host = len(base)
		}
		// Scheme and host are compared without case (RFC 3986 6.2.2.1), the path with it.
		if len(ref) > len(base) && strings.EqualFold(ref[:host], base[:host]) && ref[host:len(base)] == base[host:] &&
			ref[len(base)] == '/' {
			if typ, id, ok := literal(ref[len(base)+1:], false); ok {
				return Ref{typ, id}, true
			}
		}
	}
	return Ref{}, false
}
