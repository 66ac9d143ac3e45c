package httpapi

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// byteRange is a part of a representation.
type byteRange struct{ start, length int64 }

// contentRange is the range in the form of RFC 9110 section 14.4: first and last byte, and the size of the whole.
func (p byteRange) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", p.start, p.start+p.length-1, size)
}

// rangeKind classifies a Range header.
type rangeKind int

const (
	wholeFile     rangeKind = iota // no range, or one that is to be ignored
	partOfFile                     // one satisfiable range
	unsatisfiable                  // a range outside the file: 416
)

// parseRange reads a Range header for a representation of size bytes (RFC 9110 section 14.2). Other units than bytes
// and malformed headers are ignored, as it requires. Multiple ranges are ignored too, as it allows: clients do not use
// them to resume downloads, and a multipart response multiplies the work of the server.
func parseRange(values []string, size int64) (byteRange, rangeKind) {
	if len(values) != 1 {
		return byteRange{}, wholeFile
	}
	unit, set, found := strings.Cut(values[0], "=")
	if !found || !strings.EqualFold(trim(unit), "bytes") {
		return byteRange{}, wholeFile
	}
	ranges := members([]string{set})
	if len(ranges) != 1 {
		return byteRange{}, wholeFile
	}
	first, last, found := strings.Cut(ranges[0], "-")
	if !found {
		return byteRange{}, wholeFile
	}
	if first == "" {
		return suffixRange(last, size)
	}
	start, ok := digits(first)
	if !ok {
		return byteRange{}, wholeFile
	}
	end := int64(math.MaxInt64)
	if last != "" {
		if end, ok = digits(last); !ok || end < start {
			return byteRange{}, wholeFile
		}
	}
	if start >= size {
		return byteRange{}, unsatisfiable
	}
	return byteRange{start: start, length: min(end, size-1) - start + 1}, partOfFile
}

// suffixRange returns the last bytes of the file, or the whole file if it is shorter.
func suffixRange(text string, size int64) (byteRange, rangeKind) {
	length, ok := digits(text)
	if !ok {
		return byteRange{}, wholeFile
	}
	length = min(length, size)
	if length == 0 {
		return byteRange{}, unsatisfiable
	}
	return byteRange{start: size - length, length: length}, partOfFile
}

// digits reads a number of any length, at most the largest int64.
func digits(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	value, _ := strconv.ParseInt(text, 10, 64) // the largest number if it is out of range
	return value, true
}

// rangeApplies evaluates If-Range (RFC 9110 section 13.1.5): the range applies without If-Range, or if it equals the
// representation's ETag in a strong comparison. A date never matches, because files have no Last-Modified.
func rangeApplies(header http.Header, etag string) bool {
	values := header.Values("If-Range")
	return len(values) == 0 || len(values) == 1 && trim(values[0]) == etag
}

// matches reports whether an If-Match or If-None-Match header lists the ETag or is "*". If-None-Match compares
// weakly (RFC 9110 section 13.1.2), If-Match strongly (13.1.1).
func matches(values []string, etag string, weakly bool) bool {
	for _, value := range values {
		if trim(value) == "*" {
			return true
		}
		for _, tag := range entityTags(value) {
			if weakly {
				tag = strings.TrimPrefix(tag, "W/")
			}
			if tag == etag {
				return true
			}
		}
	}
	return false
}

// entityTags reads a list of entity tags, up to the first malformed one. Between the quotes every character except a quote
// is part of the tag, including commas and backslashes (RFC 9110 section 8.8.3).
func entityTags(text string) []string {
	var tags []string
	for {
		text = strings.TrimLeft(text, " \t,")
		opaque, weak := strings.CutPrefix(text, "W/")
		if !strings.HasPrefix(opaque, `"`) {
			return tags
		}
		end := strings.IndexByte(opaque[1:], '"')
		if end < 0 {
			return tags
		}
		tag := opaque[:end+2]
		if weak {
			tag = "W/" + tag
		}
		tags = append(tags, tag)
		text = opaque[end+2:]
	}
}
