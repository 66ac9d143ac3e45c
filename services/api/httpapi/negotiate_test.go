package httpapi

import (
	"net/http"
	"strings"
	"testing"
)

func TestChooseCoding(t *testing.T) {
	t.Parallel()
	for want, values := range map[coding][]string{
		gzipped: {
			"gzip", "GZip", "x-gzip", "gzip;q=0.001", "gzip, identity", "*;q=0.5", "identity;q=0, gzip", "identity;q=0, *",
			// The examples of RFC 9110 section 12.5.3.
			"compress, gzip", "*", "compress;q=0.5, gzip;q=1.0", "gzip;q=1.0, identity; q=0.5, *;q=0",
			"gzip, deflate, br, zstd", ", ,gzip,",
		},
		identity: {
			"", "identity", "deflate, br", "gzip;q=0", "gzip;q=0.000", "gzip;q=0.5, identity;q=0.8", "gzip;q=0.5, identity",
			"*;q=0.5, gzip;q=0", "*;q=0, identity",
			"gzip;q=high", "gzip;q=1.5", "gzip;q=1.001", "gzip;q=0.1234", "gzip;q=1e0", // members that cannot be read are ignored
		},
		noCoding: {"identity;q=0", "*;q=0", "gzip;q=0, identity;q=0", "gzip;q=0, *;q=0", "br, identity;q=0"},
	} {
		for _, value := range values {
			if got, _ := chooseCoding(http.Header{"Accept-Encoding": {value}}); got != want {
				t.Errorf("%q: coding %d, want %d", value, got, want)
			}
		}
	}
	if got, _ := chooseCoding(http.Header{}); got != identity { // F-11: no gzip unless accepted
		t.Errorf("without a header: coding %d", got)
	}
	if got, _ := chooseCoding(http.Header{"Accept-Encoding": {"br", "gzip"}}); got != gzipped {
		t.Errorf("two headers: coding %d", got)
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	for want, all := range map[bool][][]string{
		true: {
			{"respond-async"}, {"Respond-Async"}, {"respond-async=1"}, {"respond-async, wait=100"},
			{"respond-async, handling=lenient"}, {"handling=lenient", "respond-async"}, // K-12
			{"handling = lenient,respond-async ; foo=bar"}, {`wait="1\"0,;0", respond-async`},
		},
		false: {
			nil, {`foo; bar=""`}, {`foo="respond-async, x"`}, {`foo="\", respond-async"`}, {"foo; respond-async"},
			{"foo=respond-async"}, {"xrespond-async", "respond async", "=", `"respond-async"`},
		},
	} {
		for _, values := range all {
			if got := prefersAsync(http.Header{"Prefer": values}); got != want {
				t.Errorf("%q: %t", values, got)
			}
		}
	}
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	type answer struct{ accepts, names bool }
	for want, all := range map[answer][][]string{
		{true, true}: {
			{"application/fhir+json"}, {"Application/FHIR+JSON; fhirVersion=4.0"}, {"application/json"},
			{"text/html", "application/json;q=0.1"},
		},
		{true, false}: {
			nil, {"*/*"}, {"*"}, {"application/*"}, {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
			// Unreadable headers count as absent.
			{"application/json;q=x"}, {""}, {" , ,", "\t"}, {"json", "/", "application/", "/json", ";q=0"},
		},
		{false, false}: {
			{"text/html"}, {"application/fhir+xml"}, {"application/json;q=0"}, {"*/*, application/*;q=0"}, {"text/html;q=0"},
			{"*/*, application/fhir+json;q=0, application/json;q=0"}, {"application/fhir+xml", "application/json;q=x"},
		},
	} {
		for _, values := range all {
			header := http.Header{"Accept": values}
			got := answer{accepts(header, fhirJSON, plainJSON), namesType(header, fhirJSON, plainJSON)}
			if got != want {
				t.Errorf("%q: %+v, want %+v", values, got, want)
			}
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
		// A last member that decides everything takes effect after any other members.
		closed := value
		for _, char := range value {
			if char == '"' {
				closed = "" // a quoted string may swallow what follows
			}
		}
		if got, _ := chooseCoding(http.Header{"Accept-Encoding": {closed, "identity;q=0, x-none"}}); got == identity {
			t.Errorf("%q: identity although it is refused", value)
		}
		if got, _ := chooseCoding(http.Header{"Accept-Encoding": {value, "gzip"}}); got == noCoding {
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
			t.Errorf("%q is read as respond-async", value)
		}
	})
}
