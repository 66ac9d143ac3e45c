package bulkclient

import (
	"errors"
	"net/http"
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
		{"Mon, 02 Jan 2006 15:04:05 GMT", time.Second, 100 * time.Millisecond, true},
		{"Fri, 02 Jan 2226 15:04:05 GMT", time.Second, maxWait, true},
	} {
		if got, ok := retryAfter(test.header, test.unit); got != test.want || ok != test.ok {
			t.Errorf("%q in %v: %v, %t, want %v, %t", test.header, test.unit, got, ok, test.want, test.ok)
		}
	}
}

// A 503 may come from the server, in the unit of the job, or from a proxy, in seconds.
func TestUnitOfRetryAfterDuringOutages(t *testing.T) {
	for _, row := range []struct {
		unit   time.Duration
		header string
		want   time.Duration
	}{
		{time.Millisecond, "5000", 5 * time.Second}, {time.Millisecond, "5", 5 * time.Second},
		{time.Millisecond, "999", 999 * time.Second}, {time.Second, "5", 5 * time.Second}, {time.Second, "1200", 20 * time.Minute},
	} {
		for _, polled := range []bool{true, false} {
			got, ok := retryIn(&ServerError{Status: 503, retryAfter: row.header}, 1, row.unit, polled)
			if got != row.want || !ok {
				t.Errorf("Retry-After %s in %v, polled %t: %v, %t, want %v", row.header, row.unit, polled, got, ok, row.want)
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
		{"percent in the text", map[string]string{"X-Progress": "45% complete"}, 1,
			Status{"45% complete", 45, time.Second}},
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
	for _, test := range []struct {
		name, text string
		count      int64 // announced
		good       bool
	}{
		{"two", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Patient","x":"\n"}` + "\n", 2, true},
		{"no newline at the end", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Patient"}`, 2, true},
		{"type behind and blanks", `{ "id": "a", "resourceType" : "Patient" }` + "\n", 1, true},
		{"carriage return", `{"resourceType":"Patient"}` + "\r\n", 1, true},
		{"no count", `{"resourceType":"Patient"}` + "\n", -1, true},
		{"nothing", "", 0, true},
		{"nothing announced as one", "", 1, false},
		{"another type", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Person"}`, 2, false},
		{"cut at the end", `{"resourceType":"Patient"}` + "\n" + `{"resourceType":"Pat`, 2, false},
		{"only newlines", "\n\n", 2, false},
	} {
		for size := 1; size <= len(test.text)+1; size++ {
			check := newLines("Patient")
			var err error
			for rest := test.text; rest != "" && err == nil; rest = rest[min(size, len(rest)):] {
				_, err = check.Write([]byte(rest[:min(size, len(rest))]))
			}
			if err == nil {
				err = check.Close(test.count)
			}
			if (err == nil) != test.good || err != nil && !errors.Is(err, ErrMismatch) {
				t.Fatalf("%s in pieces of %d: %v", test.name, size, err)
			}
		}
	}
}

// TestLongLinesAreNotBuffered: a line that begins with its type is not kept in memory (pitfall 6).
func TestLongLinesAreNotBuffered(t *testing.T) {
	check := newLines("Binary")
	if _, err := check.Write([]byte(`{"resourceType":"Binary","data":"`)); err != nil {
		t.Fatal(err)
	}
	piece := []byte(strings.Repeat("x", 1<<20))
	for range 40 {
		if _, err := check.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if cap(check.head) > 1<<10 {
		t.Errorf("keeps %d bytes", cap(check.head))
	}
	check = newLines("Patient")
	var err error
	for range 40 {
		if _, err = check.Write(piece); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrMismatch) {
		t.Errorf("a line without a type was kept: %v", err)
	}
}

func FuzzManifestNames(f *testing.F) {
	f.Add("Patient", "https://a.org/fhir/..%2f..%2fx.ndjson")
	f.Add("Patient", "https://a.org/Patient.ndjson")
	f.Fuzz(func(t *testing.T, typ, location string) {
		got, err := files(&Manifest{Output: []Item{{Type: typ, URL: location}}})
		if err != nil {
			return
		}
		name := got[0].Name
		if strings.ContainsAny(name, "/\\:\x00") || strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".ndjson") {
			t.Errorf("%q is named %q", location, name)
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
