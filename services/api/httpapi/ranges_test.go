package httpapi

import (
	"net/http"
	"testing"
)

// pitfall 18: the forms of RFC 9110 section 14, byte by byte.
func TestParseRange(t *testing.T) {
	t.Parallel()
	const size = 10000
	for value, want := range map[string]string{ // Content-Range
		"bytes=0-499":                  "bytes 0-499/10000", // the examples of section 14.1.2
		"bytes=500-999":                "bytes 500-999/10000",
		"bytes=-500":                   "bytes 9500-9999/10000",
		"bytes=9500-":                  "bytes 9500-9999/10000",
		"bytes=0-0":                    "bytes 0-0/10000",
		"bytes=-1":                     "bytes 9999-9999/10000",
		"bytes=9999-9999":              "bytes 9999-9999/10000",
		"bytes=0-":                     "bytes 0-9999/10000",
		"bytes=007-0009":               "bytes 7-9/10000",
		"bytes=9000-20000":             "bytes 9000-9999/10000",
		"bytes=1-99999999999999999999": "bytes 1-9999/10000",
		"bytes=-20000":                 "bytes 0-9999/10000",
		"Bytes=0-1":                    "bytes 0-1/10000",
		"bytes= , 0-1 ,":               "bytes 0-1/10000",
	} {
		part, kind := parseRange([]string{value}, size)
		if kind != partOfFile || part.contentRange(size) != want {
			t.Errorf("%q: kind %d, Content-Range %q, want %q", value, kind, part.contentRange(size), want)
		}
	}
	check := func(want rangeKind, size int64, values ...string) {
		t.Helper()
		if _, kind := parseRange(values, size); kind != want {
			t.Errorf("%q of %d: kind %d, want %d", values, size, kind, want)
		}
	}
	for _, value := range []string{"bytes=10000-", "bytes=99999999999999999999-", "bytes=-0"} {
		check(unsatisfiable, size, value)
	}
	check(unsatisfiable, 0, "bytes=0-")
	check(unsatisfiable, 0, "bytes=-5")
	check(wholeFile, size)
	check(wholeFile, size, "bytes=0-1", "bytes=4-5")
	for _, value := range []string{
		"bytes=5-4", "bytes=0-1,4-5", "lines=0-1", "0-1", "bytes=1", "bytes=-", "bytes=1-2-3", "bytes=--1", "bytes=+1-2",
		"bytes=a-b", "bytes=", "", "bytes=99999999999999999999x-",
	} {
		check(wholeFile, size, value)
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
