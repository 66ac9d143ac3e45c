package bulkclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestExport(t *testing.T) {
	for _, test := range []struct {
		name             string
		ig, keep, plain  bool
		retryAfter, file string
		wait             time.Duration
	}{
		{name: "classic", retryAfter: "1500", wait: 1500 * time.Millisecond, file: "Patient.ndjson"},
		{name: "ig", ig: true, retryAfter: "2", wait: 2 * time.Second, file: "Patient.ndjson"},
		{name: "keep gzip", keep: true, retryAfter: "100", wait: time.Second / 10, file: "Patient.ndjson.gz"},
		{name: "identity", keep: true, plain: true, retryAfter: "1000", wait: time.Second, file: "Patient.ndjson"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newFakeServer(t)
			s.pending, s.retryAfter = 2, test.retryAfter
			patients := s.add(ListOutput, "Patient", "Patient.ndjson", 30)
			first := s.add(ListOutput, "Observation", "Observation.a.1.0.ndjson", 200)
			second := s.add(ListOutput, "Observation", "Observation.b.1.0.ndjson", 100)
			s.addLines(ListError, "OperationOutcome", "OperationOutcome.e.1.0.ndjson", []byte(`{"resourceType":`+
				`"OperationOutcome","issue":[{"severity":"error","code":"processing","diagnostics":"Condition is gone"}]}`+"\n"))
			s.addLines(ListDeleted, "Bundle", "Bundle.d.1.0.ndjson", []byte(`{"type":"transaction","resourceType":"Bundle"}`+"\n"))
			for _, file := range s.files {
				if file.identity = test.plain; test.plain {
					file.digest = digestOf(file.plain)
				}
			}
			seen := &recorder{}
			c, slept := newClient(t, s, func(cfg *Config) { cfg.IG, cfg.Observer = test.ig, seen })
			dir := filepath.Join(t.TempDir(), "new", "folder")
			request := Request{Group: "g", Types: []string{"Patient", "Observation", "Patient"}}
			report, err := c.Export(t.Context(), request, Options{Dir: dir, KeepGzip: test.keep})
			must(t, err)
			if got := s.seen[0].URL.RawQuery; got != "_type=Observation%2CPatient" {
				t.Errorf("kicked off with the query %q", got)
			}
			if want := []time.Duration{test.wait, test.wait}; !slices.Equal(slept.all, want) {
				t.Errorf("waited %v, want %v", slept.all, want)
			}
			if prefer := s.seen[0].Header.Get("Prefer"); (prefer == "respond-async") != test.ig {
				t.Errorf("kicked off with Prefer %q", prefer)
			}
			for i, bears := range s.authorizations() {
				if bears != "Bearer t0" {
					t.Errorf("request %d has the authorization %q", i, bears)
				}
			}
			got := content(t, dir, test.file)
			if test.keep && !test.plain {
				got = unzip(t, got)
			}
			if !bytes.Equal(got, patients.plain) {
				t.Errorf("%s differs from the served file", test.file)
			}
			for _, name := range names(t, dir) {
				if !isData(name) && name != manifestFile {
					t.Errorf("%s was left in the folder", name)
				}
			}
			if len(names(t, dir)) != 6 {
				t.Errorf("the folder holds %v", names(t, dir))
			}
			observations := Total{Type: "Observation", Files: 2, Resources: 300,
				Bytes: int64(len(first.plain) + len(second.plain))}
			if got := withoutSeconds(report.Types[0]); len(report.Types) != 2 || got != observations {
				t.Errorf("types: %+v, want %+v first", report.Types, observations)
			}
			all := Total{Files: 3, Resources: 330, Bytes: observations.Bytes + int64(len(patients.plain))}
			if got := withoutSeconds(report.Total); got != all {
				t.Errorf("total: %+v, want %+v", got, all)
			}
			if report.Errors.Resources != 1 || report.Deleted.Resources != 1 {
				t.Errorf("errors %+v, deleted %+v", report.Errors, report.Deleted)
			}
			if want := []string{"Condition is gone (processing)"}; !slices.Equal(report.Problems, want) {
				t.Errorf("problems %q, want %q", report.Problems, want)
			}
			if seen.resources != 332 || seen.planned != 5 || seen.finished != 5 || len(seen.statuses) != 2 {
				t.Errorf("observed %+v", seen)
			}
			if status := seen.statuses[0]; status.State != "started" || status.Percent != 40 {
				t.Errorf("observed status %+v", status)
			}
			again, err := Verify(t.Context(), dir, nil)
			if err != nil || withoutSeconds(again.Total) != all {
				t.Errorf("verify: %+v, %v", again, err)
			}
		})
	}
}

func mustExport(t *testing.T, c *Client, opts Options) {
	t.Helper()
	if _, err := c.Export(t.Context(), Request{Group: "g"}, opts); err != nil {
		t.Fatal(err)
	}
}

// mustFail runs an export into the 500 of the server.
func mustFail(t *testing.T, c *Client, opts Options) {
	t.Helper()
	var refused *ServerError
	if _, err := c.Export(t.Context(), Request{Group: "g"}, opts); !errors.As(err, &refused) || refused.Status != 500 {
		t.Fatalf("error %v, want the 500", err)
	}
}

func withoutSeconds(t Total) Total { t.Seconds = 0; return t }

func TestBusyServerIsRetried(t *testing.T) {
	s := newFakeServer(t)
	s.kickOffs = []int{429, 503}
	s.polls = []int{429, 503, 502}
	s.add(ListOutput, "Patient", "Patient.ndjson", 3).refuse = []int{503, 429, 504}
	seen := &recorder{}
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Observer = seen })
	mustExport(t, c, Options{Dir: t.TempDir()})
	// Every refusal has Retry-After: 3, in seconds.
	want := []time.Duration{3e9, 3e9, 3e9, 3e9, 4e9, 3e9, 3e9, 4e9}
	if !slices.Equal(seen.waits, want) {
		t.Errorf("waited %v, want %v", seen.waits, want)
	}
}

// TestNotAManifest: a document that is not a manifest is an error, from the server and in the folder. An export without
// files is valid (pitfall 1).
func TestNotAManifest(t *testing.T) {
	const good = `{"transactionTime":"2026-01-02T03:04:05Z","request":"https://a.org/Group/g/$export",` +
		`"requiresAccessToken":true,"output":[],"error":[]}`
	without := func(old, put string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in the manifest", old)
		}
		return strings.Replace(good, old, put, 1)
	}
	for name, row := range map[string]struct {
		body string
		want error
	}{
		"good":              {good, nil},
		"open":              {without("true", "false"), nil},
		"quoted":            {without("true", `"true"`), nil},
		"fraction":          {without("05Z", "05.123+01:00"), nil},
		"no time":           {without(`"transactionTime":"2026-01-02T03:04:05Z",`, ""), nil},
		"date":              {without("T03:04:05Z", ""), nil},
		"no request":        {without(`"request":"https://a.org/Group/g/$export",`, ""), nil},
		"empty request":     {without("https://a.org/Group/g/$export", ""), nil},
		"no requirement":    {without(`"requiresAccessToken":true,`, ""), nil},
		"no error":          {without(`,"error":[]`, ""), nil},
		"null error":        {without(`"error":[]`, `"error":null`), nil},
		"more":              {without(`"error":[]`, `"error":[],"extension":{"a":[1]},"link":[{"relation":"self"}]`), nil},
		"page":              {"<html>Please log in</html>", ErrMismatch},
		"empty":             {" ", ErrMismatch},
		"empty object":      {"{}", ErrMismatch},
		"only output":       {`{"output":[]}`, ErrMismatch},
		"null":              {"null", ErrMismatch},
		"list":              {"[]", ErrMismatch},
		"outcome":           {`{"resourceType":"OperationOutcome","issue":[]}`, ErrMismatch},
		"resource":          {without(`"error":[]`, `"error":[],"resourceType":"Parameters"`), ErrMismatch},
		"cut":               {good[:len(good)-1], ErrMismatch},
		"two":               {good + good, ErrMismatch},
		"number as time":    {without(`"2026-01-02T03:04:05Z"`, "1767323045"), ErrMismatch},
		"other requirement": {without("true", `"yes"`), ErrMismatch},
		"no output":         {without(`"output":[],`, ""), ErrMismatch},
		"null output":       {without(`"output":[]`, `"output":null`), ErrMismatch},
		"output twice":      {without(`"output":[]`, `"output":[],"output":[]`), ErrMismatch},
		"object":            {without(`"output":[]`, `"output":{}`), ErrMismatch},
		"item":              {without(`"output":[]`, `"output":["x"]`), ErrMismatch},
		"empty item":        {without(`"output":[]`, `"output":[{}]`), ErrMismatch},
		"type":              {without(`"output":[]`, `"output":[{"type":"../x","url":"https://a.org/x"}]`), ErrMismatch},
		"count":             {without(`"output":[]`, `"output":[{"url":"https://a.org/x","count":"many"}]`), ErrMismatch},
		"half count":        {without(`"output":[]`, `"output":[{"url":"https://a.org/x","count":1.5}]`), ErrMismatch},
		"credentials":       {without(`"output":[]`, `"output":[{"url":"https://u:p@a.org/x"}]`), ErrMismatch},
		"scheme":            {without(`"output":[]`, `"output":[{"url":"file:///etc/passwd"}]`), ErrMismatch},
		"link":              {without(`"error":[]`, `"error":[],"link":{"relation":"next"}`), ErrMismatch},
		"page of many":      {without(`"error":[]`, `"error":[],"link":[{"relation":"next","url":"1"}]`), ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			s.body = row.body
			c, _ := newClient(t, s, nil)
			dir := t.TempDir()
			report, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir})
			if !errors.Is(err, row.want) || report.Total.Files != 0 || len(report.Types) != 0 {
				t.Errorf("export: %+v, %v, want %v", report, err, row.want)
			}
			left := []string{stateFile}
			if row.want == nil {
				left = []string{manifestFile}
			}
			if got := names(t, dir); !slices.Equal(got, left) {
				t.Errorf("the folder holds %v, want %v", got, left)
			}
			dir = t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, manifestFile), []byte(row.body), 0o600))
			if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, row.want) {
				t.Errorf("verify: %v, want %v", err, row.want)
			}
		})
	}
}

func TestRetriesEnd(t *testing.T) {
	s := newFakeServer(t)
	s.polls = slices.Repeat([]int{503}, 100)
	c, slept := newClient(t, s, nil)
	_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir()})
	var refused *ServerError
	if !errors.As(err, &refused) || refused.Status != 503 {
		t.Fatalf("error %v, want the 503", err)
	}
	if len(slept.all) != maxFailures {
		t.Errorf("waited %d times, want %d", len(slept.all), maxFailures)
	}
}

func TestLostKickOffIsNotRetried(t *testing.T) {
	s := newFakeServer(t)
	s.hangUp = true
	c, slept := newClient(t, s, nil)
	_, err := c.KickOff(t.Context(), Request{Group: "g"})
	var lost lostError
	if kicked := len(s.requests()); !errors.As(err, &lost) || kicked != 1 || len(slept.all) != 0 {
		t.Errorf("error %v after %d kick-offs and %d waits", err, kicked, len(slept.all))
	}
}

func TestErrorsContainNeitherQueryNorToken(t *testing.T) {
	s := newFakeServer(t)
	s.Close()
	c, _ := newClient(t, s, nil)
	_, err := c.KickOff(t.Context(), Request{Group: "g", Types: []string{"Patient"}})
	if err == nil || strings.Contains(err.Error(), "_type") || strings.Contains(err.Error(), "t0") {
		t.Errorf("error %v", err)
	}
}

func TestErrorOfARefusal(t *testing.T) {
	s := newFakeServer(t)
	s.kickOffs = []int{403}
	s.outcome = "You may not export Condition.\x1b[2J\nAsk"
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir})
	want := "kick off the export: the server answered 403 Forbidden: You may not export Condition.[2J Ask (forbidden)"
	if err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("the folder holds %v", got)
	}
}

// TestLostConnection: a download continues where the connection was lost (pitfall 33).
func TestLostConnection(t *testing.T) {
	s := newFakeServer(t)
	file := s.add(ListOutput, "Patient", "Patient.ndjson", 2000)
	size := len(file.body)
	for _, cuts := range [][]int{{0}, {1}, {size / 2}, {size - 1}, {size}, {0, 0, 100_000, 1, 0, 70_000}} {
		t.Run(fmt.Sprint(cuts), func(t *testing.T) {
			s.mu.Lock()
			s.seen, file.cuts = nil, slices.Clone(cuts)
			s.mu.Unlock()
			seen := &recorder{}
			c, _ := newClient(t, s, func(cfg *Config) { cfg.Observer = seen })
			dir := t.TempDir()
			mustExport(t, c, Options{Dir: dir})
			if !bytes.Equal(content(t, dir, "Patient.ndjson"), file.plain) {
				t.Error("the file differs from the served one")
			}
			want, at := []string{}, 0
			for _, cut := range append([]int{0}, cuts...) {
				if at += cut; at == size {
					break // nothing was missing
				}
				request := "GET /fhir/jobs/1/Patient.ndjson"
				if at > 0 {
					request += fmt.Sprintf(" bytes=%d-", at)
				}
				want = append(want, request)
			}
			if got := s.requests()[2:]; !slices.Equal(got, want) {
				t.Errorf("requested %q, want %q", got, want)
			}
			if last := s.seen[len(s.seen)-1].Header; last.Get("Range") != "" && last.Get("If-Range") != file.etag {
				t.Errorf("the range depends on %q, want %q", last.Get("If-Range"), file.etag)
			}
			if seen.resources != 2000 || seen.bytes != int64(len(file.plain)) {
				t.Errorf("observed %d resources and %d bytes", seen.resources, seen.bytes)
			}
		})
	}
}

// TestLostConnectionWithoutETag: a file that no ETag identifies starts over, because a range could be of another file.
func TestLostConnectionWithoutETag(t *testing.T) {
	for _, etag := range []string{"", `W/"a"`} {
		s := newFakeServer(t)
		file := s.add(ListOutput, "Patient", "Patient.ndjson", 2000)
		file.etag, file.cuts = etag, []int{1000, -1}
		c, _ := newClient(t, s, nil)
		dir := t.TempDir()
		mustExport(t, c, Options{Dir: dir})
		if !bytes.Equal(content(t, dir, "Patient.ndjson"), file.plain) {
			t.Error("the file differs from the served one")
		}
		want := []string{"GET /fhir/jobs/1/Patient.ndjson", "GET /fhir/jobs/1/Patient.ndjson"}
		if got := s.requests()[2:]; !slices.Equal(got, want) {
			t.Errorf("requested %q, want %q", got, want)
		}
	}
}

func TestStalledConnection(t *testing.T) {
	s := newFakeServer(t)
	file := s.add(ListOutput, "Patient", "Patient.ndjson", 500)
	file.stall = true
	c, _ := newClient(t, s, nil)
	c.stall = 50 * time.Millisecond
	dir := t.TempDir()
	mustExport(t, c, Options{Dir: dir})
	if !bytes.Equal(content(t, dir, "Patient.ndjson"), file.plain) {
		t.Error("the file differs from the served one")
	}
	if n := s.countOf("GET /fhir/jobs/1/Patient.ndjson"); n < 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestResumeAfterFailure fails an export while one file is finished, one is partial and one is missing, and resumes it.
func TestResumeAfterFailure(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep gzip %t", keep), func(t *testing.T) {
			s := newFakeServer(t)
			whole := s.add(ListOutput, "Patient", "Patient.ndjson", 300)
			begun := s.add(ListOutput, "Condition", "Condition.ndjson", 200)
			s.add(ListOutput, "Device", "Device.ndjson", 100)
			begun.cuts, begun.refuse = []int{10_000}, nil
			s.after["Condition.ndjson"] = func() { begun.refuse = []int{500} }
			one, _ := newClient(t, s, func(cfg *Config) { cfg.Parallel = 1 })
			dir := t.TempDir()
			request, opts := Request{Group: "g"}, Options{Dir: dir, KeepGzip: keep}
			_, err := one.Export(t.Context(), request, opts)
			var refused *ServerError
			if !errors.As(err, &refused) || refused.Status != 500 {
				t.Fatalf("error %v, want the 500", err)
			}
			if part := content(t, dir, "Condition.ndjson.part"); !bytes.Equal(part, begun.body[:10_000]) {
				t.Fatalf("the part holds %d bytes", len(part))
			}

			if _, err := one.Export(t.Context(), request, opts); !errors.Is(err, ErrFolder) {
				t.Errorf("a new export into the same folder: %v", err)
			}
			opts.Resume = true
			if _, err := one.Export(t.Context(), Request{Group: "h"}, opts); !errors.Is(err, ErrFolder) {
				t.Errorf("another export resumed in the folder: %v", err)
			}

			s.mu.Lock()
			s.seen, begun.refuse, s.after = nil, nil, nil
			s.mu.Unlock()
			seen := &recorder{}
			two, _ := newClient(t, s, func(cfg *Config) { cfg.Observer, cfg.Parallel = seen, 1 })
			report, err := two.Export(t.Context(), request, opts)
			must(t, err)
			want := []string{
				"GET /fhir/jobs/1",
				"GET /fhir/jobs/1/Condition.ndjson bytes=10000-",
				"GET /fhir/jobs/1/Device.ndjson",
			}
			if got := s.requests(); !slices.Equal(got, want) {
				t.Errorf("requested %q, want %q", got, want)
			}
			if report.Total.Resources != 600 || seen.resources != 600 || seen.finished != 3 {
				t.Errorf("report %+v, observed %+v", report.Total, seen)
			}
			if _, err := Verify(t.Context(), dir, nil); err != nil {
				t.Error(err)
			}
			if keep {
				if !bytes.Equal(content(t, dir, "Patient.ndjson.gz"), whole.body) {
					t.Error("the kept file is not the stored one")
				}
			} else if !bytes.Equal(content(t, dir, "Condition.ndjson"), begun.plain) {
				t.Error("the resumed file differs from the served one")
			}

			s.mu.Lock()
			s.seen = nil
			s.mu.Unlock()
			again, err := two.Export(t.Context(), request, opts)
			if err != nil || withoutSeconds(again.Total) != withoutSeconds(report.Total) || len(s.requests()) != 0 {
				t.Errorf("once more: %+v, %v, %q", again.Total, err, s.requests())
			}
			opts.Resume = false
			if _, err := two.Export(t.Context(), request, opts); !errors.Is(err, ErrFolder) {
				t.Errorf("a new export over a finished one: %v", err)
			}
		})
	}
}

// TestResumeAfterCrashBeforeRename: a file in the journal without its final name is made again from its part, without a
// request; a truncated line of the journal affects only its own file.
func TestResumeAfterCrashBeforeRename(t *testing.T) {
	s := newFakeServer(t)
	file := s.add(ListOutput, "Patient", "Patient.ndjson", 300)
	s.add(ListOutput, "Device", "Device.ndjson", 10).refuse = []int{500}
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Parallel = 1 })
	dir := t.TempDir()
	mustFail(t, c, Options{Dir: dir})
	final := filepath.Join(dir, "Patient.ndjson")
	said, err := json.Marshal(meta{
		URL: s.base() + "/jobs/1/Patient.ndjson", ETag: file.etag, Length: int64(len(file.body)), Encoding: "gzip",
		Digest: file.digest,
	})
	must(t, err)
	journal, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = journal.WriteString(`{"file":"Dev`)
	for _, err := range []error{
		err, journal.Close(), os.Remove(final),
		os.WriteFile(final+".part", file.body, 0o600), os.WriteFile(final+".part.json", said, 0o600),
		os.WriteFile(final+".new", []byte("half"), 0o600),
	} {
		must(t, err)
	}
	before := s.countOf("GET /fhir/jobs/1/Patient")
	mustExport(t, c, Options{Dir: dir, Resume: true})
	if !bytes.Equal(content(t, dir, "Patient.ndjson"), file.plain) {
		t.Error("the file differs from the served one")
	}
	if after := s.countOf("GET /fhir/jobs/1/Patient"); after != before {
		t.Errorf("a whole part was requested again")
	}
	if got := names(t, dir); len(got) != 3 {
		t.Errorf("the folder holds %v", got)
	}
}

func TestChangedFileRestarts(t *testing.T) {
	s := newFakeServer(t)
	file := s.add(ListOutput, "Patient", "Patient.ndjson", 400)
	file.cuts = []int{50_000}
	s.after["Patient.ndjson"] = func() {
		if s.after["Patient.ndjson"] = nil; len(file.cuts) == 0 {
			file.set(bytes.ReplaceAll(file.plain, []byte("patient-"), []byte("person-")))
		}
	}
	seen := &recorder{}
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Observer = seen })
	dir := t.TempDir()
	mustExport(t, c, Options{Dir: dir})
	got := content(t, dir, "Patient.ndjson")
	if !bytes.Equal(got, file.plain) || !bytes.Contains(got, []byte("person-")) {
		t.Error("the file is not the one that the server has now")
	}
	if s.countOf("GET /fhir/jobs/1/Patient.ndjson bytes=50000-") != 1 {
		t.Errorf("requested %q", s.requests())
	}
	if seen.resources != 400 || seen.bytes != int64(len(file.plain)) {
		t.Errorf("observed %d resources and %d bytes", seen.resources, seen.bytes)
	}
}

// TestWrongFiles: a file that fails a check gets no final name, and its part is removed.
func TestWrongFiles(t *testing.T) {
	good := `{"resourceType":"Patient","id":"a"}`
	count := func(n int64) *int64 { return &n }
	for name, wrong := range map[string]func(*stored){
		"digest":           func(f *stored) { f.digest = digestOf([]byte("something else")) },
		"digest form":      func(f *stored) { f.digest = "sha-256=abc" },
		"digest length":    func(f *stored) { f.digest = "sha-256=:YWJj:" },
		"count too small":  func(f *stored) { f.count = count(1) },
		"count too large":  func(f *stored) { f.count = count(3) },
		"type":             func(f *stored) { f.set([]byte(good + "\n" + `{"resourceType":"Observation"}` + "\n")) },
		"type behind":      func(f *stored) { f.set([]byte(`{"id":"a","resourceType":"Observation"}` + "\n")) },
		"longer type":      func(f *stored) { f.set([]byte(`{"resourceType":"PatientX"}` + "\n")) },
		"no type":          func(f *stored) { f.set([]byte(`{"id":"resourceType Patient"}` + "\n")) },
		"not JSON":         func(f *stored) { f.set([]byte(`<Patient/>` + "\n")) },
		"empty line":       func(f *stored) { f.set([]byte(good + "\n\n")) },
		"cut line":         func(f *stored) { f.set([]byte(good + "\n" + `{"resourceType":"Patient","id` + "\n")) },
		"not gzip":         func(f *stored) { f.body = []byte("plain"); f.digest = "" },
		"gzip checksum":    func(f *stored) { f.body[len(f.body)-5] ^= 1; f.digest = digestOf(f.body) },
		"gzip cut":         func(f *stored) { f.body = f.body[:len(f.body)-9]; f.digest = digestOf(f.body) },
		"trailing rubbish": func(f *stored) { f.body = append(f.body, "rubbish"...); f.digest = digestOf(f.body) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			file := s.addLines(ListOutput, "Patient", "Patient.ndjson", []byte(good+"\n"+good+"\n"))
			wrong(file)
			seen := &recorder{}
			c, _ := newClient(t, s, func(cfg *Config) { cfg.Observer = seen })
			dir := t.TempDir()
			_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir})
			if !errors.Is(err, ErrMismatch) || strings.Contains(err.Error(), `"a"`) {
				t.Fatalf("error %v, want ErrMismatch", err)
			}
			if got, want := names(t, dir), []string{stateFile}; !slices.Equal(got, want) {
				t.Errorf("the folder holds %v, want %v", got, want)
			}
			if seen.resources != 0 || seen.bytes != 0 || seen.finished != 0 {
				t.Errorf("observed %+v", seen)
			}
		})
	}
}

// TestTokenIsSentToItsOriginOnly: no URL or redirect of the server sends the token to another origin.
func TestTokenIsSentToItsOriginOnly(t *testing.T) {
	var mu sync.Mutex
	var got []string
	reply := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Header.Get("Authorization"))
		reply(w, r)
	}))
	defer foreign.Close()
	for name, point := range map[string]func(s *fakeServer){
		"status": func(s *fakeServer) { s.location = foreign.URL + "/fhir/jobs/1" },
		"status by https": func(s *fakeServer) {
			s.location = strings.Replace(s.URL, "http", "https", 1) + "/fhir/jobs/1"
		},
		"file": func(s *fakeServer) { s.add(ListOutput, "Patient", foreign.URL+"/Patient.ndjson", 1) },
		"redirect of file": func(s *fakeServer) {
			s.add(ListOutput, "Patient", "Patient.ndjson", 1).moved = foreign.URL + "/Patient.ndjson"
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			point(s)
			c, _ := newClient(t, s, nil)
			_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir()})
			if name == "redirect of file" {
				var refused *ServerError
				if !errors.As(err, &refused) || refused.Status != http.StatusTeapot {
					t.Errorf("error %v, want the other server's response", err)
				}
			} else if !errors.Is(err, ErrForeignOrigin) {
				t.Errorf("error %v, want ErrForeignOrigin", err)
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{""}; !slices.Equal(got, want) { // the redirect is followed without a token
		t.Errorf("the other server got %q", got)
	}
}

func TestOpenFilesGetNoToken(t *testing.T) {
	s := newFakeServer(t)
	s.open = true
	s.add(ListOutput, "Patient", "Patient.ndjson", 1)
	c, _ := newClient(t, s, nil)
	mustExport(t, c, Options{Dir: t.TempDir()})
	if got, want := s.authorizations(), []string{"Bearer t0", "Bearer t0", ""}; !slices.Equal(got, want) {
		t.Errorf("authorizations %q, want %q", got, want)
	}
}

// counting returns t1, t2, ...: a new token after each refused one.
type counting struct {
	mu sync.Mutex
	n  int
}

func (c *counting) Token(_ context.Context, refused string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 || refused == fmt.Sprintf("t%d", c.n) {
		c.n++
	}
	return fmt.Sprintf("t%d", c.n), nil
}

// TestTokenIsRefreshed covers conformance B-39: a job continues with a fresh token of the same user.
func TestTokenIsRefreshed(t *testing.T) {
	s := newFakeServer(t)
	s.token, s.pending = "t1", 2
	s.onPoll = func() { s.token = "t" + strconv.Itoa(3-max(s.pending, 1)) } // t1, t2, t2
	for _, name := range []string{"Patient.a.ndjson", "Patient.b.ndjson", "Patient.c.ndjson", "Patient.d.ndjson"} {
		s.add(ListOutput, "Patient", name, 50)
	}
	s.after["Patient.a.ndjson"] = func() { s.token = "t3" }
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Tokens = &counting{} })
	dir := t.TempDir()
	report, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir})
	if err != nil || report.Total.Resources != 200 {
		t.Fatalf("report %+v, %v", report, err)
	}

	s.mu.Lock()
	s.token = "another"
	s.mu.Unlock()
	c, _ = newClient(t, s, nil)
	_, err = c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir()})
	var refused *ServerError
	if !errors.Is(err, ErrTokenRefused) || !errors.As(err, &refused) || refused.Status != 401 {
		t.Errorf("error %v, want the 401 and ErrTokenRefused", err)
	}
}

// TestNamesAreUnique: files are named for their types, and a known file keeps its name (pitfall 13).
func TestNamesAreUnique(t *testing.T) {
	manifest := &Manifest{}
	for i, typ := range []string{"Patient", "Device", "Patient", "PATIENT", "", "Patient", "Patient"} {
		manifest.Output = append(manifest.Output, Item{Type: typ, URL: fmt.Sprint("https://a.org/", i)})
	}
	got, err := files(manifest, map[string]string{
		"https://a.org/5": "patient.ndjson", "https://a.org/6": "Patient.Patient-00000.1.0.ndjson",
		"https://b.org": "Device.ndjson",
	})
	must(t, err)
	want := []string{
		"Patient.2.ndjson", "Device.2.ndjson", "Patient.3.ndjson", "PATIENT.4.ndjson", "Resource.ndjson", "patient.ndjson",
		"Patient.Patient-00000.1.0.ndjson",
	}
	names := []string{}
	for _, file := range got {
		names = append(names, file.Name)
	}
	if !slices.Equal(names, want) {
		t.Errorf("named %q, want %q", names, want)
	}
	manifest.Error = manifest.Output[:1]
	if _, err := files(manifest, nil); err == nil {
		t.Error("a file that is listed twice was accepted")
	}
}

// TestSymlinksAreNotFollowedOut: a link in the folder is not followed out of it.
func TestSymlinksAreNotFollowedOut(t *testing.T) {
	s := newFakeServer(t)
	s.add(ListOutput, "Patient", "Patient.ndjson", 1).refuse = []int{500}
	c, _ := newClient(t, s, nil)
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	mustFail(t, c, Options{Dir: dir})
	part := filepath.Join(dir, "Patient.ndjson.part")
	must(t, errors.Join(os.Remove(part), os.Symlink(out, part)))
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Resume: true}); err == nil {
		t.Error("the link was followed")
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("outside of the folder: %v", err)
	}
}

func TestInterrupt(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		t.Run(fmt.Sprintf("cancel %t", cancel), func(t *testing.T) {
			s := newFakeServer(t)
			s.pending = 100
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			c, _ := newClient(t, s, nil)
			c.sleep = func(ctx context.Context, _ time.Duration) error { interrupt(); return ctx.Err() }
			dir := t.TempDir()
			_, err := c.Export(ctx, Request{Group: "g"}, Options{Dir: dir, CancelOnInterrupt: cancel})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want context.Canceled", err)
			}
			if got := s.countOf("DELETE /fhir/jobs/1"); (got == 1) != cancel {
				t.Errorf("%d deletions", got)
			}
			if got := names(t, dir); (len(got) == 0) != cancel {
				t.Errorf("the folder holds %v", got)
			}
		})
	}
}

func TestFolderWithOtherFiles(t *testing.T) {
	s := newFakeServer(t)
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("mine"), 0o600))
	for _, resume := range []bool{false, true} {
		_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Resume: resume})
		if !errors.Is(err, ErrFolder) {
			t.Errorf("resume %t: error %v, want ErrFolder", resume, err)
		}
	}
	if len(s.requests()) != 0 {
		t.Errorf("requested %q", s.requests())
	}
}

func TestOneProcessPerFolder(t *testing.T) {
	dir := t.TempDir()
	first, err := openFolder(dir)
	must(t, err)
	if _, err := openFolder(dir); !errors.Is(err, ErrFolder) {
		t.Errorf("error %v, want ErrFolder", err)
	}
	must(t, first.Close())
	second, err := openFolder(dir)
	if err != nil || second.Close() != nil {
		t.Errorf("after the first has closed it: %v", err)
	}
}

func TestExpiredJob(t *testing.T) {
	s := newFakeServer(t)
	s.polls = []int{500}
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	mustFail(t, c, Options{Dir: dir})
	s.mu.Lock()
	s.polls = []int{404}
	s.mu.Unlock()
	_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Resume: true})
	if err == nil || !strings.Contains(err.Error(), "the export no longer exists") {
		t.Errorf("error %v", err)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"changed byte": func(dir string) error {
			return change(dir, "Patient.ndjson", func(b []byte) []byte { b[len(b)-9] ^= 1; return b })
		},
		"lost line": func(dir string) error {
			return change(dir, "Patient.ndjson", func(b []byte) []byte { return b[bytes.IndexByte(b, '\n')+1:] })
		},
		"missing file": func(dir string) error { return os.Remove(filepath.Join(dir, "Patient.ndjson")) },
		"other file": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "More.ndjson"), nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			s.add(ListOutput, "Patient", "Patient.ndjson", 5)
			s.add(ListOutput, "Device", "Device.ndjson", 5)
			c, _ := newClient(t, s, nil)
			dir := t.TempDir()
			mustExport(t, c, Options{Dir: dir})
			must(t, damage(dir))
			if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, ErrMismatch) {
				t.Errorf("error %v, want ErrMismatch", err)
			}
		})
	}
	if _, err := Verify(t.Context(), t.TempDir(), nil); !errors.Is(err, ErrFolder) {
		t.Errorf("an empty folder: %v", err)
	}
}

func change(dir, name string, how func([]byte) []byte) error {
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, how(text), 0o600)
}
