package httpapi

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// These parsers follow RFC 9110 and RFC 7240 and ignore malformed members: an invalid preference or quality is no reason to
// refuse a request.

// mediaRange is a member of an Accept header: its name in lower case, and its quality.
type mediaRange struct {
	name    string
	quality float64
}

// mediaRanges returns the members of the Accept headers that can be read. None is the same as no header.
func mediaRanges(header http.Header) []mediaRange {
	var ranges []mediaRange
	for _, member := range members(header.Values("Accept")) {
		name, quality, ok := weighted(member)
		major, minor, _ := strings.Cut(name, "/")
		if ok && (name == "*" || major != "" && minor != "") { // "*" is a common mistake
			ranges = append(ranges, mediaRange{name, quality})
		}
	}
	return ranges
}

// accepts reports whether an Accept header allows an answer of one of the media types (RFC 9110 section 12.5.1). The
// most specific range decides for each type. A missing or unreadable header allows everything.
func accepts(header http.Header, types ...string) bool {
	ranges := mediaRanges(header)
	if len(ranges) == 0 {
		return true
	}
	for _, typ := range types {
		major, _, _ := strings.Cut(typ, "/")
		specific, quality := -1, 0.0
		for _, r := range ranges {
			rank := -1
			switch r.name {
			case typ:
				rank = 2
			case major + "/*":
				rank = 1
			case "*/*", "*":
				rank = 0
			}
			if rank > specific {
				specific, quality = rank, r.quality
			}
		}
		if quality > 0 {
			return true
		}
	}
	return false
}

// namesType reports whether an Accept header names one of the media types explicitly.
func namesType(header http.Header, types ...string) bool {
	for _, r := range mediaRanges(header) {
		if r.quality > 0 && slices.Contains(types, r.name) {
			return true
		}
	}
	return false
}

// coding is a content coding in which a file can be sent.
type coding int

const (
	noCoding coding = iota // neither is acceptable
	identity
	gzipped
)

// chooseCoding picks the coding for a file from Accept-Encoding (RFC 9110 section 12.5.3). gzip wins ties, because
// files are stored gzipped. A client that does not send the header gets identity: it may not know gzip. It also returns
// whether identity is acceptable.
func chooseCoding(header http.Header) (chosen coding, identityAllowed bool) {
	const unset = -1.0
	gzipQ, identityQ, anyQ := unset, unset, unset
	for _, member := range members(header.Values("Accept-Encoding")) {
		name, quality, ok := weighted(member)
		if !ok {
			continue
		}
		switch name {
		case "gzip", "x-gzip": // equivalent (section 8.4.1.3)
			gzipQ = max(gzipQ, quality)
		case "identity":
			identityQ = quality
		case "*":
			anyQ = quality
		}
	}
	if gzipQ == unset {
		gzipQ = max(anyQ, 0)
	}
	identityAllowed = identityQ > 0 || identityQ == unset && anyQ != 0
	switch {
	case gzipQ > 0 && gzipQ >= identityQ:
		return gzipped, identityAllowed
	case identityAllowed:
		return identity, true
	}
	return noCoding, false
}

// prefersAsync reports whether a Prefer header has respond-async. A value and parameters have no meaning.
func prefersAsync(header http.Header) bool {
	_, found := preference(header, "respond-async")
	return found
}

// separateStatus is the preference for polls whose status is not that of the export.
const separateStatus = "separate-export-status"

// prefersSeparateStatus reports whether a Prefer header has respond-async and separate-export-status (S-19).
func prefersSeparateStatus(header http.Header) bool {
	_, found := preference(header, separateStatus)
	return found && prefersAsync(header)
}

// prefersLenient reports whether a Prefer header has handling=lenient (RFC 7240 section 4.4). Any other value is the
// default, strict.
func prefersLenient(header http.Header) bool {
	value, _ := preference(header, "handling")
	return strings.EqualFold(value, "lenient")
}

// preference returns the value of the first preference of the name in the Prefer headers, which alone counts (RFC 7240
// section 2). Names have no case; parameters have no meaning for any that Sluice knows.
func preference(header http.Header, wanted string) (value string, found bool) {
	for _, member := range members(header.Values("Prefer")) {
		name, value, _ := strings.Cut(splitOutsideQuotes(member, ';')[0], "=")
		if strings.EqualFold(trim(name), wanted) {
			return strings.Trim(trim(value), `"`), true
		}
	}
	return "", false
}

// members splits the values of a list header into its members (RFC 9110 section 5.6.1). Empty members are left out.
func members(values []string) []string {
	var list []string
	for _, value := range values {
		for _, member := range splitOutsideQuotes(value, ',') {
			if member = trim(member); member != "" {
				list = append(list, member)
			}
		}
	}
	return list
}

// splitOutsideQuotes cuts text at each separator that is not in a quoted string. It returns at least one part.
func splitOutsideQuotes(text string, separator byte) []string {
	var parts []string
	quoted, begin := false, 0
	for i := 0; i < len(text); i++ {
		switch char := text[i]; {
		case char == '\\' && quoted:
			i++ // skip the escaped character
		case char == '"':
			quoted = !quoted
		case char == separator && !quoted:
			parts = append(parts, text[begin:i])
			begin = i + 1
		}
	}
	return append(parts, text[begin:])
}

// weighted reads "name;q=0.5": the name in lower case and the quality, 1 when it has none. Other parameters are ignored.
// ok is false for a malformed quality.
func weighted(member string) (name string, quality float64, ok bool) {
	parts := splitOutsideQuotes(member, ';')
	quality = 1
	for _, parameter := range parts[1:] {
		key, value, _ := strings.Cut(parameter, "=")
		if !strings.EqualFold(trim(key), "q") {
			continue
		}
		value = trim(value)
		var err error
		if quality, err = strconv.ParseFloat(value, 64); err != nil || !qvalue.MatchString(value) {
			return "", 0, false
		}
	}
	return strings.ToLower(trim(parts[0])), quality, true
}

// qvalue is a quality: 0 or 1 with at most three decimals (RFC 9110 section 12.4.2).
var qvalue = regexp.MustCompile(`^(0(\.[0-9]{0,3})?|1(\.0{0,3})?)$`)

// trim removes the white space that headers allow around their parts.
func trim(text string) string { return strings.Trim(text, " \t") }
