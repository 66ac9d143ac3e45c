package httpapi

import (
	"net/http"
	"strings"
	"testing"
)

func TestChooseCoding(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values []string
		want   coding
	}{
		{nil, identity}, // F-11: nobody is forced to gzip
		{[]string{""}, identity},
		{[]string{"gzip"}, gzipped},
		{[]string{"GZip"}, gzipped},
		{[]string{"x-gzip"}, gzipped},
		// The examples of RFC 9110 section 12.5.3.
		{[]string{"compress, gzip"}, gzipped},
		{[]string{"*"}, gzipped},
		{[]string{"compress;q=0.5, gzip;q=1.0"}, gzipped},
		{[]string{"gzip;q=1.0, identity; q=0.5, *;q=0"}, gzipped},
		{[]string{"gzip, deflate, br, zstd"}, gzipped},
		{[]string{"br", "gzip"}, gzipped},
		{[]string{"identity"}, identity},
		{[]string{"deflate, br"}, identity},
		{[]string{"gzip;q=0"}, identity},
		{[]string{"gzip;q=0.000"}, identity},
		{[]string{"gzip;q=0.5, identity;q=0.8"}, identity},
		{[]string{"gzip;q=0.5, identity"}, identity},
		{[]string{"gzip;q=0.001"}, gzipped},
		{[]string{"gzip, identity"}, gzipped},
		{[]string{"*;q=0.5"}, gzipped},
		{[]string{"*;q=0.5, gzip;q=0"}, identity},
		{[]string{"identity;q=0"}, noCoding},
		{[]string{"*;q=0"}, noCoding},
		{[]string{"gzip;q=0, identity;q=0"}, noCoding},
		{[]string{"gzip;q=0, *;q=0"}, noCoding},
		{[]string{"*;q=0, identity"}, identity},
		{[]string{"identity;q=0, gzip"}, gzipped},
		{[]string{"identity;q=0, *"}, gzipped},
		{[]string{"br, identity;q=0"}, noCoding},
		// Members that cannot be read are ignored.
		{[]string{"gzip;q=high"}, identity},
		{[]string{"gzip;q=1.5"}, identity},
		{[]string{"gzip;q=0.1234"}, identity},
		{[]string{", ,gzip,"}, gzipped},
	}
	for _, test := range tests {
		if got := chooseCoding(http.Header{"Accept-Encoding": test.values}); got != test.want {
			t.Errorf("%q: coding %d, want %d", test.values, got, test.want)
		}
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []string
		async  bool
	}{
		{nil, false},
		{[]string{"respond-async"}, true},
		{[]string{"Respond-Async"}, true},
		// K-12.
		{[]string{"respond-async, handling=lenient"}, true},
		{[]string{"handling=lenient", "respond-async"}, true},
		{[]string{"handling = lenient,respond-async ; foo=bar"}, true},
		{[]string{"respond-async=1"}, true},
		// Examples of RFC 7240 section 2.
		{[]string{`foo; bar=""`}, false},
		{[]string{"respond-async, wait=100"}, true},
		{[]string{`wait="1\"0,;0", respond-async`}, true},
		{[]string{`foo="respond-async, x"`}, false},
		{[]string{`foo="\", respond-async"`}, false},
		{[]string{"foo; respond-async"}, false},
		{[]string{"foo=respond-async"}, false},
		{[]string{"xrespond-async", "respond async", "=", `"respond-async"`}, false},
	} {
		if got := prefersAsync(http.Header{"Prefer": test.values}); got != test.async {
			t.Errorf("%q: %t", test.values, got)
		}
	}
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values  []string
		accepts bool
		names   bool
	}{
		{nil, true, false},
		{[]string{"application/fhir+json"}, true, true},
		{[]string{"Application/FHIR+JSON; fhirVersion=4.0"}, true, true},
		{[]string{"application/json"}, true, true},
		{[]string{"*/*"}, true, false},
		{[]string{"*"}, true, false},
		{[]string{"application/*"}, true, false},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, true, false},
		{[]string{"text/html"}, false, false},
		{[]string{"application/fhir+xml"}, false, false},
		{[]string{"text/html", "application/json;q=0.1"}, true, true},
		{[]string{"application/json;q=0"}, false, false},
		{[]string{"*/*, application/fhir+json;q=0, application/json;q=0"}, false, false},
		{[]string{"*/*, application/*;q=0"}, false, false},
		{[]string{"application/fhir+xml", "application/json;q=x"}, false, false},
		{[]string{"text/html;q=0"}, false, false},
		// As if there were none: nothing can be read.
		{[]string{"application/json;q=x"}, true, false},
		{[]string{""}, true, false},
		{[]string{" , ,", "\t"}, true, false},
		{[]string{"json", "/", "application/", "/json", ";q=0"}, true, false},
	}
	for _, test := range tests {
		header := http.Header{"Accept": test.values}
		if got := accepts(header, fhirJSON, "application/json"); got != test.accepts {
			t.Errorf("%q: accepts %t, want %t", test.values, got, test.accepts)
		}
		if got := namesType(header, fhirJSON, "application/json"); got != test.names {
			t.Errorf("%q: names %t, want %t", test.values, got, test.names)
		}
	}
}

func FuzzChooseCoding(f *testing.F) {
	for _, seed := range []string{
		"", "*", "gzip", "compress;q=0.5, gzip;q=1.0", "gzip;q=1.0, identity; q=0.5, *;q=0", "identity;q=0",
		`gzip;x="a,b;q=0"`, "gzip;q=0.1234", ",,;;==", `"`, `\`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		// However odd the rest, a member that comes last and settles everything does settle it.
		closed := value
		for _, char := range value {
			if char == '"' {
				closed = "" // a quoted string may swallow what follows
			}
		}
		if got := chooseCoding(http.Header{"Accept-Encoding": {closed, "identity;q=0, x-none"}}); got == identity {
			t.Errorf("%q: identity although it is refused", value)
		}
		if got := chooseCoding(http.Header{"Accept-Encoding": {value, "gzip"}}); got == noCoding {
			t.Errorf("%q: nothing although gzip is accepted", value)
		}
	})
}

func FuzzPreferences(f *testing.F) {
	for _, seed := range []string{
		"", "respond-async", "respond-async, handling=lenient", `foo; bar="a,b"`, `a="\"`, `a="\`, ";", "=", `"`, ",,,",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if !prefersAsync(http.Header{"Prefer": {value, "respond-async"}}) {
			t.Errorf("%q hides the next header", value)
		}
		if prefersAsync(http.Header{"Prefer": {value}}) && !strings.Contains(strings.ToLower(value), "respond-async") {
			t.Errorf("%q is said to have respond-async", value)
		}
	})
}
