package bulkclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOrganizedOutput: files with blocks of lines of several types get a name, and their resources are counted without the
// headers of the blocks, whatever the server counts (P-37).
func TestOrganizedOutput(t *testing.T) {
	header := func(id string) string {
		return `{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":"Patient/` + id + `"}}]}` + "\n"
	}
	patient := func(id string) string { return `{"resourceType":"Patient","id":"` + id + `"}` + "\n" }
	one := header("a") + patient("a") + `{"id":"o1","resourceType":"Observation"}` + "\n" + header("b") + patient("b")
	two := header("b") + `{"resourceType":"Observation","id":"o2"}` + "\n"
	for name, test := range map[string]struct {
		item    string // of the first file
		failure error
	}{
		"no count":                {`{"url":"SELF/1","continuesInFile":"2"}`, nil},
		"lines":                   {`{"url":"SELF/1","count":5,"continuesInFile":"SELF/2"}`, nil},
		"resources":               {`{"url":"SELF/1","count":3}`, nil},
		"fewer":                   {`{"url":"SELF/1","count":2}`, ErrMismatch},
		"neither":                 {`{"url":"SELF/1","count":4}`, ErrMismatch},
		"more":                    {`{"url":"SELF/1","count":6}`, ErrMismatch},
		"a type that is wrong":    {`{"type":"Patient","url":"SELF/1"}`, ErrMismatch},
		"continues in no file":    {`{"url":"SELF/1","continuesInFile":"SELF/3"}`, ErrMismatch},
		"continues in no address": {`{"url":"SELF/1","continuesInFile":"file:///x"}`, ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			s := newOtherServer(t, routes{
				"/fhir/Group/g/$export": {{202, map[string]string{"Content-Location": "SELF/jobs/1"}, ""}},
				"/jobs/1": {{200, nil, `{"transactionTime":"2026-01-02T03:04:05Z","request":"r","requiresAccessToken":true,` +
					`"outputOrganizedBy":"Patient","output":[` + test.item + `,{"url":"SELF/2","count":1}],"error":[]}`}},
				"/1": {{200, nil, one}}, "/2": {{200, nil, two}}, "/jobs/2": {{200, nil, two}},
			})
			c, err := New(Config{Base: s.URL + "/fhir", Tokens: fixed("t0"), Parallel: 1})
			must(t, err)
			t.Cleanup(c.Close)
			if name == "no count" {
				s.answers["/jobs/1"][0].body = strings.Replace(s.answers["/jobs/1"][0].body, "SELF/2", "SELF/jobs/2", 1)
			}
			dir := t.TempDir()
			report, err := c.Export(t.Context(), Request{Group: "g", OrganizeBy: "Patient"}, Options{Dir: dir})
			if !errors.Is(err, test.failure) {
				t.Fatalf("error %v, want %v", err, test.failure)
			}
			if err != nil {
				return
			}
			want := Total{Files: 2, Resources: 4, Bytes: int64(len(one + two))}
			verified, err := Verify(t.Context(), dir, nil)
			must(t, err)
			for _, r := range []Report{report, verified} {
				if r.OrganizedBy != "Patient" || len(r.Types) != 1 || withoutSeconds(r.Types[0]) != want || withoutSeconds(r.Total) != want {
					t.Errorf("report %+v", r)
				}
			}
			if got := names(t, dir); !slices.Equal(got, []string{"ByPatient.2.ndjson", "ByPatient.ndjson", manifestFile}) {
				t.Errorf("the folder holds %q", got)
			}
			if text := content(t, dir, "ByPatient.ndjson"); string(text) != one {
				t.Errorf("the file has %q", text)
			}
			_, err = c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir() + "/new", Last: dir})
			if !errors.Is(err, ErrLast) {
				t.Errorf("an update of it: %v, want ErrLast", err)
			}
		})
	}
}

// TestSignedPages: the signature of each page is kept, and verify finds a page that is missing, added or changed.
func TestSignedPages(t *testing.T) {
	sign, jwks := signer(t, "the-key")
	pages, unsigned := map[string]string{}, ""
	s := newFakeServer(t)
	s.jwks = jwks
	inner := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, is := pages[r.URL.Path]
		if !is {
			inner.ServeHTTP(w, r)
			return
		}
		if r.URL.Path != unsigned {
			w.Header().Set(signatureHeader, sign([]byte(page)))
		}
		_, _ = w.Write([]byte(page))
	})
	for n, typ := range []string{"Patient", "Device", "Patient"} {
		s.add(ListOutput, typ, fmt.Sprint("f", n), 3)
		links := fmt.Sprintf(`,"link":[{"relation":"next","url":"%s/jobs/%d"}]`, s.base(), n+2)
		if n == 2 {
			links = `,"extension":{"resources":[{"type":"Device","expected":3,"written":3,"filtered":0,"withheld":0,"leftOut":0},` +
				`{"type":"Patient","expected":6,"written":6,"filtered":0,"withheld":0,"leftOut":0}]}`
		}
		pages[fmt.Sprintf("/fhir/jobs/%d", n+1)] = fmt.Sprintf(`{"transactionTime":"2026-01-02T03:04:05Z","request":"r",`+
			`"requiresAccessToken":true,"output":[{"type":"%s","url":"%s/jobs/1/f%d","count":3}],"deleted":[],"error":[]%s}`,
			typ, s.base(), n, links)
	}
	c, _ := newClient(t, s, nil)
	all := t.TempDir()
	mustExport(t, c, Options{Dir: all, KeepGzip: true})
	report, err := Verify(t.Context(), all, jwks)
	if err != nil || report.Total.Resources != 9 || report.SignedBy != "the-key" {
		t.Errorf("%+v, %v", report, err)
	}
	for name, damage := range map[string]func(dir string) error{
		"the last page": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "manifest.signed.3.json")), os.Remove(filepath.Join(dir, "manifest.3.jws")))
		},
		"a page in the middle": func(dir string) error { return os.Remove(filepath.Join(dir, "manifest.signed.2.json")) },
		"a signature":          func(dir string) error { return os.Remove(filepath.Join(dir, "manifest.3.jws")) },
		"a page twice": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "manifest.signed.4.json"), content(t, dir, "manifest.signed.3.json"), 0o600),
				os.WriteFile(filepath.Join(dir, "manifest.4.jws"), content(t, dir, "manifest.3.jws"), 0o600))
		},
		"a byte of a page": func(dir string) error {
			return change(dir, "manifest.signed.2.json", func(text []byte) []byte { return append(text, ' ') })
		},
		"a file of a page, and its item": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "Device.ndjson.gz")), change(dir, manifestFile, func(text []byte) []byte {
				var all map[string]any
				must(t, json.Unmarshal(text, &all))
				list := all["output"].([]any)
				all["output"] = slices.Delete(list, 1, 2)
				text, err := json.Marshal(all)
				must(t, err)
				return text
			}))
		},
	} {
		dir := t.TempDir()
		must(t, os.CopyFS(dir, os.DirFS(all)))
		must(t, damage(dir))
		if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, ErrMismatch) {
			t.Errorf("without %s: %v, want ErrMismatch", name, err)
		}
	}
	for path := range maps.Keys(pages) {
		unsigned = path
		if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir()}); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s is not signed: %v, want ErrMismatch", path, err)
		}
	}
}
