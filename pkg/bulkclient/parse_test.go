package bulkclient

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRetryAfter: integers of either unit, and no busy loop for any header (pitfall 30).
func TestRetryAfter(t *testing.T) {
	for _, test := range []struct {
		header string
		unit   time.Duration
		want   time.Duration
		ok     bool
	}{
		{"1500", time.Millisecond, 1500 * time.Millisecond, true},
		{" 2 ", time.Second, 2 * time.Second, true},
		{"0", time.Second, 100 * time.Millisecond, true},
		{"1", time.Millisecond, 100 * time.Millisecond, true},
		{"99999999999999", time.Millisecond, maxWait, true},
		{"9223372036854775807", time.Second, maxWait, true},
		{"-1", time.Second, 0, false},
		{"1.5", time.Second, 0, false},
		{"", time.Second, 0, false},
		{"Mon, 02 Jan 2006 15:04:05 GMT", time.Second, 0, false},
		{"Fri, 02 Jan 2226 15:04:05 GMT", time.Second, maxWait, true},
	} {
		if got, ok := retryAfter(http.Header{"Retry-After": {test.header}}, test.unit); got != test.want || ok != test.ok {
			t.Errorf("%q in %v: %v, %t, want %v, %t", test.header, test.unit, got, ok, test.want, test.ok)
		}
	}
	// The clock of the server may be years behind.
	late := http.Header{"Retry-After": {"Mon, 02 Jan 2006 15:04:05 GMT"}, "Date": {"Mon, 02 Jan 2006 15:03:05 GMT"}}
	if got, ok := retryAfter(late, time.Millisecond); got != time.Minute || !ok {
		t.Errorf("a date by the server's clock: %v, %t", got, ok)
	}
}

// Retry-After of a refusal is in seconds in both dialects (spec 7, pitfall 43).
func TestRetryAfterOfRefusalsIsInSeconds(t *testing.T) {
	for _, status := range []int{429, 503} {
		for header, want := range map[string]time.Duration{"5": 5 * time.Second, "1200": 20 * time.Minute, "": time.Second} {
			if got, ok := retryIn(&ServerError{Status: status, retry: http.Header{"Retry-After": {header}}}, 1); got != want || !ok {
				t.Errorf("%d with Retry-After %q: %v, %t, want %v", status, header, got, ok, want)
			}
		}
	}
}

func TestStatusOf(t *testing.T) {
	for _, test := range []struct {
		name   string
		header map[string]string
		polls  int
		want   Status
	}{
		{"ours", map[string]string{"Retry-After": "2000", "X-Progress": "started", "X-Progress-Percent": "7"}, 1,
			Status{"started", 7, 2 * time.Second}},
		{"ours without progress", map[string]string{"Retry-After": "2000"}, 1, Status{"", -1, 2 * time.Second}},
		{"percent in the text", map[string]string{"X-Progress": "45% complete"}, 1,
			Status{"45% complete", 45, time.Second}},
		{"another server in seconds", map[string]string{"Retry-After": "120", "X-Progress": "Build in progress"}, 1,
			Status{"Build in progress", -1, 2 * time.Minute}},
		{"nothing", nil, 3, Status{"", -1, 4 * time.Second}},
		{"nothing for long", nil, 100, Status{"", -1, 16 * time.Second}},
		{"nonsense", map[string]string{"X-Progress": "\x1b[31mred", "X-Progress-Percent": "700"}, 1,
			Status{"[31mred", -1, time.Second}},
	} {
		header := http.Header{}
		for k, v := range test.header {
			header.Set(k, v)
		}
		if got := statusOf(header, time.Millisecond, test.polls); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"https://a.org/x", "https://A.org:443/y?z", true},
		{"http://a.org", "http://a.org:80", true},
		{"http://a.org", "https://a.org", false},
		{"http://a.org", "http://a.org:8080", false},
		{"https://a.org", "https://b.a.org", false},
		{"https://a.org", "https://a.org.evil.com", false},
		{"https://a.org", "https://a.org@evil.com", false},
		{"https://a.org", "a.org", false},
		{"ftp://a.org", "ftp://a.org", false},
	} {
		if got := SameOrigin(test.a, test.b); got != test.want {
			t.Errorf("%s and %s: %t", test.a, test.b, got)
		}
	}
}

func TestBaseURL(t *testing.T) {
	for _, base := range []string{
		"", "a.org", "ftp://a.org", "http://", "http://u:p@a.org", "http://a.org/?x", "http://a.org/#x", "://",
	} {
		if _, err := New(Config{Base: base, Parallel: 1}); err == nil {
			t.Errorf("%q was accepted", base)
		}
	}
	if _, err := New(Config{Base: "http://a.org"}); err == nil {
		t.Error("zero parallel downloads were accepted")
	}
}

// TestPlainHTTPNeedsInsecureHTTP: without InsecureHTTP, a token is sent over plain http to this machine only.
func TestPlainHTTPNeedsInsecureHTTP(t *testing.T) {
	for base, good := range map[string]bool{
		"https://a.org/fhir": true, "http://localhost:8080/fhir": true, "http://x.localhost": true, "http://LOCALHOST.": true,
		"http://127.0.0.1:1/fhir": true, "http://127.9.9.9": true, "http://[::1]:8080": true,
		"http://[::ffff:127.0.0.1]": true, "HTTPS://a.org": true,
		"http://a.org": false, "HTTP://a.org": false, "http://10.0.0.1/fhir": false, "http://[2001:db8::1]": false,
		"http://localhost.evil.com": false, "http://127.0.0.1.evil.com": false, "http://0.0.0.0": false,
	} {
		for _, cfg := range []Config{
			{Tokens: fixed("t")}, {Tokens: fixed("t"), InsecureHTTP: true}, {},
		} {
			want := good || cfg.InsecureHTTP || cfg.Tokens == nil
			cfg.Base, cfg.Parallel = base, 1
			c, err := New(cfg)
			if (err == nil) != want || !want && !errors.Is(err, ErrInsecureHTTP) {
				t.Errorf("%s, tokens %v, insecure %t: %v", base, cfg.Tokens, cfg.InsecureHTTP, err)
			}
			if err == nil {
				c.Close()
			}
		}
	}
}

// TestLinesInPieces: the result does not depend on how the text is cut into pieces.
func TestLinesInPieces(t *testing.T) {
	const mark = "\xef\xbb\xbf"
	for _, test := range []struct {
		name, typ, text string
		count           int64 // announced
		good            bool
	}{
		{"two", "Patient", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Patient","x":"\n"}` + "\n", 2, true},
		{"no newline at the end", "Patient", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Patient"}`, 2, true},
		{"type behind and blanks", "Patient", `{ "id": "a", "resourceType" : "Patient" }` + "\n", 1, true},
		{"type behind a nested one", "Patient", `{"contained":[{"resourceType":"Person"}],"resourceType":"Patient"}`, 1, true},
		{"type behind brackets in texts", "Patient", `{"a":"}]\\","b\"":["{"],"resourceType":"Patient"}`, 1, true},
		{"escaped type", "Patient", `{"id":"a","resource\u0054ype":"P\u0061tient"}`, 1, true},
		{"type as a value", "Patient", `{"id":"resourceType","x":"Patient"}`, 1, false},
		{"nested type only", "Patient", `{"contained":[{"resourceType":"Patient"}]}`, 1, false},
		{"carriage return", "Patient", `{"resourceType":"Patient"}` + "\r\n", 1, true},
		{"byte order mark", "Patient", mark + `{"resourceType":"Patient"}` + "\n", 1, true},
		{"byte order mark and type behind", "Patient", mark + `{"id":"a","resourceType":"Patient"}` + "\n", 1, true},
		{"byte order mark alone", "Patient", mark, 0, true},
		{"blank lines", "Patient", "\n" + `{"resourceType":"Patient"}` + "\n\r\n \n", 1, true},
		{"no count", "Patient", `{"resourceType":"Patient"}` + "\n", -1, true},
		{"any type", "", `{"resourceType":"Patient"}` + "\n" + `{"id":"a","resourceType":"Patient"}`, -1, true},
		{"two types for one", "", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Person"}`, -1, false},
		{"nothing", "Patient", "", 0, true},
		{"nothing announced as one", "Patient", "", 1, false},
		{"one too many", "Patient", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Patient"}`, 1, false},
		{"another type", "Patient", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Person"}`, 2, false},
		{"cut at the end", "Patient", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Pat`, 2, false},
		{"cut behind a bracket", "Patient", `{"id":"a","resourceType":"Patient","x":{"y":{}}`, 1, false},
		{"two objects", "Patient", `{"id":"a","resourceType":"Patient"}{}`, 1, false},
		{"list", "Patient", `[{"resourceType":"Patient"}]`, 1, false},
		{"text", "Patient", `"resourceType":"Patient"}`, 1, false},
		{"only newlines", "Patient", "\n\n", 2, false},
	} {
		for size := 1; size <= len(test.text)+1; size++ {
			check := newLines(test.typ, test.count)
			var err error
			for rest := test.text; rest != "" && err == nil; rest = rest[min(size, len(rest)):] {
				_, err = check.Write([]byte(rest[:min(size, len(rest))]))
			}
			if err == nil {
				err = check.Close()
			}
			if (err == nil) != test.good || err != nil && !errors.Is(err, ErrMismatch) {
				t.Fatalf("%s in pieces of %d: %v", test.name, size, err)
			}
		}
	}
}

// TestLongLinesAreNotBuffered: no part of a line is kept beyond a name, wherever its type is (pitfalls 6 and 45).
func TestLongLinesAreNotBuffered(t *testing.T) {
	piece := []byte(strings.Repeat("x", 1<<20))
	for begin, end := range map[string]string{
		`{"resourceType":"Binary","data":"`: `"}`,
		`{"data":"`:                         `","resourceType":"Binary"}`,
		`{"`:                                `":1,"resourceType":"Binary"}`,
		`{"a":[{"b":"`:                      `"}],"resourceType":"Binary"}`,
	} {
		check := newLines("Binary", 1)
		write := func(p []byte) {
			_, err := check.Write(p)
			must(t, err)
		}
		write([]byte(begin))
		for range 20 {
			write(piece)
		}
		write([]byte(end))
		must(t, check.Close())
		if cap(check.scan.text) > 2*longestName {
			t.Errorf("%s: keeps %d bytes", begin, cap(check.scan.text))
		}
	}
}

// TestEndlessLines: a line without an end is refused, and so are blank lines without one.
func TestEndlessLines(t *testing.T) {
	const line = `{"resourceType":"Patient"}` + "\n"
	for _, more := range []string{"{", "\n"} {
		check := newLines("Patient", 2)
		_, err := check.Write([]byte(line + more))
		must(t, err)
		if check.size != 1 { // the finished line does not count
			t.Errorf("%q: %d bytes", more, check.size)
		}
		check.size = maxLine - 1
		_, err = check.Write([]byte(more))
		must(t, err)
		if _, err := check.Write([]byte(more)); !errors.Is(err, ErrMismatch) {
			t.Errorf("%q without an end: %v", more, err)
		}
	}
}

// FuzzLines: the scan agrees with encoding/json on the type of every object without a duplicate of it.
func FuzzLines(f *testing.F) {
	for _, line := range []string{
		`{"resourceType":"Patient"}`, `{"a":{"resourceType":"x"},"resourceType":"Patient"}`, `{"a":"\\","resourceType":"P"}`,
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var resource map[string]json.RawMessage
		once := !strings.Contains(line, "\n") && strings.Count(line, "resource") == 1
		if !once || json.Unmarshal([]byte(line), &resource) != nil {
			return
		}
		var typ string
		if json.Unmarshal(resource["resourceType"], &typ) != nil || !safeType.MatchString(typ) {
			return
		}
		check := newLines(typ, 1)
		if _, err := check.Write([]byte(line)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if err := check.Close(); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	})
}

// FuzzManifest: whatever a server sends, names stay inside of the folder and URLs are absolute.
func FuzzManifest(f *testing.F) {
	f.Add(`{"request":"r","output":[{"type":"Patient","url":"..%2f..%2fx.ndjson","count":"1"}]}`)
	f.Add(`{"request":"r","output":[{"url":"//b.org/x"},{"type":"Patient","url":"/x"}],"error":[{"url":"x"}]}`)
	from, err := url.Parse("https://a.org/fhir/jobs/1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		manifest, err := readManifest(strings.NewReader(text), from)
		if err != nil {
			return
		}
		got, err := files(manifest, nil)
		if err != nil {
			return
		}
		for _, file := range got {
			if !regexp.MustCompile(`^[A-Z][A-Za-z]*(\.[0-9]+)?\.ndjson$`).MatchString(file.Name) {
				t.Errorf("%q is named %q", file.URL, file.Name)
			}
			if !strings.HasPrefix(file.URL, "https://") {
				t.Errorf("the URL %q", file.URL)
			}
		}
	})
}

func FuzzReprDigest(f *testing.F) {
	f.Add("sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:;x=1, sha-512=:AA==:")
	f.Fuzz(func(t *testing.T, header string) {
		if sum, err := sha256Of(header); err == nil && sum != nil && len(sum) != 32 {
			t.Errorf("%q: %d bytes", header, len(sum))
		}
	})
}
