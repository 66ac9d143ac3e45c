package httpapi

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// The parsers here read headers as RFC 9110 and RFC 7240 write them and ignore members that they cannot read: a
// preference or a quality that makes no sense is no reason to refuse a request.

// mediaRange is a member of an Accept header: its name in lower case, and its quality in thousandths.
type mediaRange struct {
	name    string
	quality int
}

// mediaRanges returns the members of the Accept headers that can be read. None is the same as no header.
func mediaRanges(header http.Header) []mediaRange {
	var ranges []mediaRange
	for _, member := range members(header.Values("Accept")) {
		name, quality, ok := weighted(member)
		major, minor, _ := strings.Cut(name, "/")
		if ok && (name == "*" || major != "" && minor != "") { // the former is a common slip
			ranges = append(ranges, mediaRange{name, quality})
		}
	}
	return ranges
}

// accepts reports whether an Accept header allows an answer of one of the media types (RFC 9110 section 12.5.1). The
// most specific range decides for each type. No header, or one of which nothing can be read, allows everything.
func accepts(header http.Header, types ...string) bool {
	ranges := mediaRanges(header)
	if len(ranges) == 0 {
		return true
	}
	for _, typ := range types {
		major, _, _ := strings.Cut(typ, "/")
		specific, quality := -1, 0
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

// namesType reports whether an Accept header names one of the media types outright.
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

// chooseCoding picks the coding for a file from Accept-Encoding (RFC 9110 section 12.5.3). gzip wins ties, since that
// is how files are stored. A client that does not send the header gets identity: it may not know gzip.
func chooseCoding(header http.Header) coding {
	const unset = -1
	gzipQ, identityQ, anyQ := unset, unset, unset
	for _, member := range members(header.Values("Accept-Encoding")) {
		name, quality, ok := weighted(member)
		if !ok {
			continue
		}
		switch name {
		case "gzip", "x-gzip": // section 8.4.1.3: the two are the same
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
	identityAllowed := identityQ > 0 || identityQ == unset && anyQ != 0
	switch {
	case gzipQ > 0 && gzipQ >= identityQ:
		return gzipped
	case identityAllowed:
		return identity
	}
	return noCoding
}

// preferences reads the Prefer headers of a request (RFC 7240): names in lower case, values without quotes, the first
// of two with one name. Parameters of a preference are read over: none has a meaning here.
func preferences(header http.Header) map[string]string {
	found := make(map[string]string)
	for _, member := range members(header.Values("Prefer")) {
		preference := splitOutsideQuotes(member, ';')[0]
		name, value, _ := strings.Cut(preference, "=")
		name = strings.ToLower(trim(name))
		if name == "" || strings.ContainsAny(name, " \t\"") {
			continue
		}
		if _, twice := found[name]; !twice {
			found[name] = unquote(trim(value))
		}
	}
	return found
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
			i++ // the next character is quoted, whatever it is
		case char == '"':
			quoted = !quoted
		case char == separator && !quoted:
			parts = append(parts, text[begin:i])
			begin = i + 1
		}
	}
	return append(parts, text[begin:])
}

// weighted reads "name;q=0.5": the name in lower case and the quality in thousandths, 1000 when it has none. Other
// parameters are read over. A quality of the wrong form makes the member unreadable.
func weighted(member string) (name string, quality int, ok bool) {
	parts := splitOutsideQuotes(member, ';')
	quality = 1000
	for _, parameter := range parts[1:] {
		key, value, _ := strings.Cut(parameter, "=")
		if !strings.EqualFold(trim(key), "q") {
			continue
		}
		if quality, ok = thousandths(trim(value)); !ok {
			return "", 0, false
		}
	}
	return strings.ToLower(trim(parts[0])), quality, true
}

// thousandths reads a qvalue: 0 or 1 with at most three decimals (RFC 9110 section 12.4.2).
func thousandths(text string) (int, bool) {
	whole, decimals, _ := strings.Cut(text, ".")
	if whole != "0" && whole != "1" || len(decimals) > 3 {
		return 0, false
	}
	for _, digit := range decimals {
		if digit < '0' || digit > '9' {
			return 0, false
		}
	}
	value, err := strconv.Atoi(whole + (decimals + "000")[:3])
	return value, err == nil && value <= 1000
}

func unquote(value string) string {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return value
	}
	var plain strings.Builder
	inner := value[1 : len(value)-1]
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) {
			i++
		}
		plain.WriteByte(inner[i])
	}
	return plain.String()
}

// trim removes the white space that headers allow around their parts.
func trim(text string) string { return strings.Trim(text, " \t") }
