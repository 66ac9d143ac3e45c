package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// FuzzMatches: a tag in a list is found among any other tags (a weak one only weakly), a tag that is not in the list is not
// found, and a tag that matches occurs in the header.
func FuzzMatches(f *testing.F) {
	for _, seed := range []string{"", "*", `"a"`, `W/"a"`, `a", "b`, `\`, `,`, `"`, " ", `W/`, "*, \"a\""} {
		f.Add(seed, seed)
		f.Add(seed, "abc-gzip")
	}
	f.Fuzz(func(t *testing.T, value, opaque string) {
		const etag = `"abc-gzip"`
		strongly, weakly := matches([]string{value}, etag, false), matches([]string{value}, etag, true)
		if strongly && !weakly || weakly && trim(value) != "*" && !strings.Contains(value, etag) {
			t.Errorf("%q matches strongly: %t, weakly: %t", value, strongly, weakly)
		}
		if strings.Contains(opaque, `"`) {
			return
		}
		other := `"` + opaque + `"`
		for _, list := range []string{other + ", " + etag, etag + "," + other, "W/" + other + " ,\t" + etag} {
			if !matches([]string{list}, etag, false) {
				t.Errorf("%q does not match", list)
			}
		}
		for _, list := range []string{other + ", W/" + etag, "W/" + etag + "," + other} {
			if strong := matches([]string{list}, etag, false); strong != (other == etag) || !matches([]string{list}, etag, true) {
				t.Errorf("%q matches strongly: %t", list, strong)
			}
		}
		if matches([]string{other + ",W/" + other}, etag, true) != (other == etag) {
			t.Errorf("%q is taken for %q", other, etag)
		}
	})
}

// FuzzAccepts: when one Accept header names a type, no other header changes the decision about it.
func FuzzAccepts(f *testing.F) {
	for _, seed := range []string{
		"", "*/*", "application/json;q=0", "application/*;q=0", `text/html;x="a,b"`, "a/b;q=0.1234", "*;q=0", ";q=1", `"`, `\`,
	} {
		f.Add(seed)
	}
	const json = "application/json"
	f.Fuzz(func(t *testing.T, value string) {
		if !accepts(http.Header{"Accept": {json, value}}, fhirJSON, json) || !namesType(http.Header{"Accept": {json, value}}, json) {
			t.Errorf("%q hides what is accepted", value)
		}
		if accepts(http.Header{"Accept": {fhirJSON + ";q=0," + json + ";q=0", value}}, fhirJSON, json) {
			t.Errorf("%q allows what is refused", value)
		}
		if namesType(http.Header{"Accept": {value}}, json) && !strings.Contains(strings.ToLower(value), json) {
			t.Errorf("%q is reported to name %s", value, json)
		}
	})
}

// FuzzBearer: a token is only read from a single header of the scheme Bearer, unchanged.
func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"", "Bearer", "Bearer ", "bearer a.b.c", "Bearer  a b", "Basic YTpi", "Bearer\ta", " Bearer a", "BearerX a"} {
		f.Add(seed, "a.b.c")
	}
	f.Fuzz(func(t *testing.T, value, raw string) {
		if got, _ := bearer(http.Header{"Authorization": {value}}); got != "" {
			if len(value) < 8 || !strings.EqualFold(value[:7], "Bearer ") || strings.TrimSpace(value[7:]) != got {
				t.Errorf("%q gives the token %q", value, got)
			}
		}
		if got, _ := bearer(http.Header{"Authorization": {"bearer " + raw}}); got != strings.TrimSpace(raw) {
			t.Errorf("%q became %q", raw, got)
		}
		for _, values := range [][]string{{value, "Bearer " + raw}, {"Bearer " + raw, value}, {"Bearer " + raw, "Bearer " + raw}} {
			if got, _ := bearer(http.Header{"Authorization": values}); got != "" {
				t.Errorf("two headers %q give %q", values, got)
			}
		}
	})
}

// FuzzManifestLines: a stored list of files becomes JSON with URLs below the job's own URL, or the response is cut.
func FuzzManifestLines(f *testing.F) {
	for _, line := range []string{
		"", `{"name":"Patient.Patient-00000.1.0.ndjson","type":"Patient","count":3}`, `{"name":"../../x?y#z","type":"\u2028<"}`,
		`{"name":"a","error":true}`, `{"name":"a"`, `{"name":"a"}{"name":"b"} `, "null", `[]`, `{"name":"\ud800"}`,
		`{"name":"a","count":1e99}`, `{"name":"a","error":"true"}`,
	} {
		f.Add(line)
		f.Add(line + "\n" + line)
	}
	const base = "https://fhir.example.org/fhir"
	s := &service{baseText: base}
	job := export.Job{ID: export.NewJobID()}
	f.Fuzz(func(t *testing.T, lines string) {
		total, files := 0, 0
		for _, list := range []string{"output", "deleted", "error"} {
			var text bytes.Buffer
			out := bufio.NewWriter(&text)
			var err error
			files, err = s.writeItems(out, job, strings.NewReader(lines), list, 0, math.MaxInt)
			if flushed := out.Flush(); flushed != nil {
				t.Fatal(flushed)
			}
			if err != nil {
				return
			}
			var items []manifestItem
			if err := json.Unmarshal([]byte("["+text.String()+"]"), &items); err != nil {
				t.Fatalf("%q: %v", text.String(), err)
			}
			total += len(items)
			for _, item := range items {
				name, below := strings.CutPrefix(item.URL, base+"/exports/"+string(job.ID)+"/files/")
				if !below || strings.ContainsAny(name, "/?#\" \n") {
					t.Errorf("%q is not a file of the job", item.URL)
				}
			}
		}
		decoder, count := json.NewDecoder(strings.NewReader(lines)), 0
		for decoder.Decode(new(json.RawMessage)) == nil {
			count++
		}
		if total != count || files != count {
			t.Errorf("%d values became %d files", count, total)
		}
	})
}
