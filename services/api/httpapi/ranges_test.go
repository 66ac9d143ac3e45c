package httpapi

import (
	"net/http"
	"testing"
)

// pitfall 18: the forms of RFC 9110 section 14, byte by byte.
func TestParseRange(t *testing.T) {
	t.Parallel()
	const size = 10000
	tests := []struct {
		name   string
		values []string
		size   int64
		want   rangeKind
		header string // Content-Range, for partOfFile
	}{
		{"none", nil, size, wholeFile, ""},
		{"first 500, RFC 9110 14.1.2", []string{"bytes=0-499"}, size, partOfFile, "bytes 0-499/10000"},
		{"second 500", []string{"bytes=500-999"}, size, partOfFile, "bytes 500-999/10000"},
		{"last 500", []string{"bytes=-500"}, size, partOfFile, "bytes 9500-9999/10000"},
		{"open", []string{"bytes=9500-"}, size, partOfFile, "bytes 9500-9999/10000"},
		{"first byte", []string{"bytes=0-0"}, size, partOfFile, "bytes 0-0/10000"},
		{"last byte", []string{"bytes=-1"}, size, partOfFile, "bytes 9999-9999/10000"},
		{"last byte by position", []string{"bytes=9999-9999"}, size, partOfFile, "bytes 9999-9999/10000"},
		{"everything", []string{"bytes=0-"}, size, partOfFile, "bytes 0-9999/10000"},
		{"end beyond the end", []string{"bytes=9000-20000"}, size, partOfFile, "bytes 9000-9999/10000"},
		{"zeros in front", []string{"bytes=007-0009"}, size, partOfFile, "bytes 7-9/10000"},
		{"digits, too many, and a letter", []string{"bytes=99999999999999999999x-"}, size, wholeFile, ""},
		{"end beyond any number", []string{"bytes=1-99999999999999999999"}, size, partOfFile, "bytes 1-9999/10000"},
		{"suffix longer than the file", []string{"bytes=-20000"}, size, partOfFile, "bytes 0-9999/10000"},
		{"unit in capitals", []string{"Bytes=0-1"}, size, partOfFile, "bytes 0-1/10000"},
		{"white space and empty members", []string{"bytes= , 0-1 ,"}, size, partOfFile, "bytes 0-1/10000"},
		{"begins at the end", []string{"bytes=10000-"}, size, unsatisfiable, ""},
		{"begins beyond any number", []string{"bytes=99999999999999999999-"}, size, unsatisfiable, ""},
		{"no suffix", []string{"bytes=-0"}, size, unsatisfiable, ""},
		{"of an empty file", []string{"bytes=0-"}, 0, unsatisfiable, ""},
		{"suffix of an empty file", []string{"bytes=-5"}, 0, unsatisfiable, ""},
		{"end before begin", []string{"bytes=5-4"}, size, wholeFile, ""},
		{"several", []string{"bytes=0-1,4-5"}, size, wholeFile, ""},
		{"several headers", []string{"bytes=0-1", "bytes=4-5"}, size, wholeFile, ""},
		{"other unit", []string{"lines=0-1"}, size, wholeFile, ""},
		{"no unit", []string{"0-1"}, size, wholeFile, ""},
		{"no dash", []string{"bytes=1"}, size, wholeFile, ""},
		{"only a dash", []string{"bytes=-"}, size, wholeFile, ""},
		{"two dashes", []string{"bytes=1-2-3"}, size, wholeFile, ""},
		{"negative", []string{"bytes=--1"}, size, wholeFile, ""},
		{"signed", []string{"bytes=+1-2"}, size, wholeFile, ""},
		{"words", []string{"bytes=a-b"}, size, wholeFile, ""},
		{"nothing", []string{"bytes="}, size, wholeFile, ""},
		{"empty", []string{""}, size, wholeFile, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			part, kind := parseRange(test.values, test.size)
			if kind != test.want {
				t.Fatalf("kind %d, want %d", kind, test.want)
			}
			if kind == partOfFile && part.contentRange(test.size) != test.header {
				t.Errorf("Content-Range %q, want %q", part.contentRange(test.size), test.header)
			}
		})
	}
}

func FuzzParseRange(f *testing.F) {
	for _, seed := range []string{
		"bytes=0-499", "bytes=-500", "bytes=9500-", "bytes=0-0,-1", "bytes=5-4", "bytes=-0", "items=0-1", "bytes=",
		"bytes=9223372036854775807-9223372036854775808", "bytes= 0-1 , ", "bytes=\"0-1\"",
	} {
		f.Add(seed, int64(10000))
		f.Add(seed, int64(0))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			size = -(size + 1)
		}
		part, kind := parseRange([]string{header}, size)
		if kind != partOfFile {
			return
		}
		if part.start < 0 || part.length < 1 || part.start >= size || part.length > size-part.start {
			t.Errorf("%q of %d: %+v is outside", header, size, part)
		}
	})
}

func TestMatches(t *testing.T) {
	t.Parallel()
	const etag = `"abc-gzip"`
	tests := []struct {
		name           string
		values         []string
		strong, weakly bool
	}{
		{"none", nil, false, false},
		{"any", []string{"*"}, true, true},
		{"same", []string{`"abc-gzip"`}, true, true},
		{"weak", []string{`W/"abc-gzip"`}, false, true},
		{"other", []string{`"abc"`}, false, false},
		{"in a list", []string{`"x", W/"y" ,"abc-gzip"`}, true, true},
		{"in a second header", []string{`"x"`, `"abc-gzip"`}, true, true},
		{"commas and backslashes are part of a tag", []string{`"a,\", "abc-gzip"`}, true, true},
		{"without quotes", []string{`abc-gzip`}, false, false},
		{"after rubbish", []string{`abc, "abc-gzip"`}, false, false},
		{"not closed", []string{`"abc-gzip`}, false, false},
		{"lower-case w", []string{`w/"abc-gzip"`}, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := matches(test.values, etag, false); got != test.strong {
				t.Errorf("strongly %t, want %t", got, test.strong)
			}
			if got := matches(test.values, etag, true); got != test.weakly {
				t.Errorf("weakly %t, want %t", got, test.weakly)
			}
		})
	}
}

func TestRangeApplies(t *testing.T) {
	t.Parallel()
	const etag = `"abc"`
	for value, want := range map[string]bool{
		`"abc"`: true, ` "abc" `: true, `W/"abc"`: false, `"abd"`: false, `Wed, 21 Oct 2026 07:28:00 GMT`: false, ``: false,
	} {
		if got := rangeApplies(http.Header{"If-Range": {value}}, etag); got != want {
			t.Errorf("If-Range %q: %t, want %t", value, got, want)
		}
	}
	if !rangeApplies(http.Header{}, etag) {
		t.Error("without If-Range a range does not count")
	}
	if rangeApplies(http.Header{"If-Range": {etag, etag}}, etag) {
		t.Error("two If-Range headers count")
	}
}
