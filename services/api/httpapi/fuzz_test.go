package httpapi_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// marker represents a secret: no response and no log line may contain it, wherever it is in a request.
const marker = "eyJtYXJrZXIiOjF9.czNjcjN0.bWFya2Vy"

// shelf is an object store in memory, so that a fuzz target needs no server.
type shelf struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if key == "" {
		return // the bucket exists
	}
	if r.Method == http.MethodPut {
		s.objects[key], _ = io.ReadAll(r.Body)
	}
	object, there := s.objects[key]
	if !there {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `<Error><Code>NoSuchKey</Code></Error>`)
		return
	}
	sum := crc32.Checksum(object, crc32.MakeTable(crc32.Castagnoli))
	w.Header().Set("ETag", fmt.Sprintf(`"%08x"`, sum))
	if r.Method == http.MethodHead {
		w.Header().Set("X-Amz-Checksum-Crc32c", base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)))
	}
	if r.Method != http.MethodPut {
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(object))
	}
}

// fuzzWorld is an API with a completed and a running job of alice's, of Patient and Observation.
type fuzzWorld struct {
	*fixture
	server             *miniredis.Miniredis
	completed, running export.JobID
	data, bad          export.File
	plain, packed      []byte // of data
}

func newFuzzWorld(f *testing.F) *fuzzWorld {
	f.Helper()
	objects := &shelf{objects: map[string][]byte{}}
	store := httptest.NewServer(objects)
	f.Cleanup(store.Close)
	w := &fuzzWorld{server: miniredis.RunT(f)}
	place := testenv.S3{Endpoint: store.URL, AccessKey: "access", SecretKey: "secret", Bucket: "shelf"}
	w.fixture = newFixtureOn(f, "redis://"+w.server.Addr(), place, func(cfg *httpapi.Config) { cfg.PollLimit = 1 << 30 })
	const query = "?_type=Patient,Observation"
	w.running = w.kickoff(w.as("alice"), query)
	w.plan(w.running, "Patient", "Observation")
	w.completed = w.kickoff(w.as("alice"), query)
	files := w.run(w.completed, patients(30), report())
	w.data, w.bad = files[0], files[1]
	w.plain, w.packed = []byte(patients(30).plain()), objects.objects[w.data.Key]
	for path, want := range map[string]int{
		statusPath(w.running): http.StatusAccepted, statusPath(w.completed): http.StatusOK,
		filePath(w.completed, w.data): http.StatusOK, filePath(w.completed, w.bad): http.StatusOK, "/readyz": http.StatusOK,
	} {
		if got := w.ask("GET", path, w.as("alice")...); got.code != want {
			f.Fatalf("%s: %d %s", path, got.code, got.body)
		}
	}
	return w
}

// restore undoes the changes of an input, so that every input starts with the same state.
func (w *fuzzWorld) restore(location string) {
	w.server.HSet("sluice:{"+string(w.completed)+"}:job", "state", string(export.Completed))
	w.server.HSet("sluice:{"+string(w.running)+"}:job", "state", string(export.Running))
	if location != "" {
		id := location[strings.LastIndexByte(location, '/')+1:]
		w.must(w.jobs.Remove(w.t.Context(), export.JobID(id)))
	}
	for _, key := range w.server.Keys() {
		if strings.HasPrefix(key, "asynq:{") {
			w.server.Del(key)
		}
	}
	w.log.Reset()
}

// The callers.
const (
	nobody   = iota // or the caller in the headers
	owner           // of both jobs
	namesake        // of another issuer, who may read nothing
	narrow          // the owner, with a token for Observation alone
	callers
)

var kickoffPath = regexp.MustCompile(`^/fhir/(Group/g[12]/|Patient/|)\$export$`)

// FuzzRequest sends any request that net/http accepts to the whole API. The stores are available and complete, so every 5xx
// is a failure. In the input {job}, {run}, {file}, {bad} and {marker} are placeholders for values of the fixture.
func FuzzRequest(f *testing.F) {
	for _, seed := range []struct {
		method, target, headers string
	}{
		{"GET", "/fhir/Group/g1/$export?_type=Patient&_outputFormat=ndjson", "Prefer: respond-async\r\nAccept: application/fhir+json"},
		{"GET", "/fhir/Group/g1/%24export?_type={marker}&{marker}=1&x={marker}", "Accept: */*;q=0.1, text/html"},
		{"GET", "/fhir/Group/{marker}/$export", "Authorization: Bearer {marker}"},
		{"GET", "/fhir/Group/g1%2F$export?access_token={marker}", "Authorization: Bearer  {marker}\r\nAuthorization: Basic {marker}"},
		{"GET", "/fhir/exports/{job}?{marker}", "Authorization: bEaReR eyJhbGciOiJub25lIn0.e30."},
		{"HEAD", "/fhir/exports/{job}", "If-None-Match: *"},
		{"GET", "/fhir/exports/{run}", "Cookie: token={marker}\r\nX-Request-Id: {marker}"},
		{"DELETE", "/fhir/exports/{job}", "X-HTTP-Method-Override: GET"},
		{"DELETE", "/fhir/exports/{run}", ""},
		{"GET", "/fhir/exports/{job}/files/{file}", "Range: bytes=5-99\r\nAccept-Encoding: gzip;q=0.5, identity"},
		{"GET", "/fhir/exports/{job}/files/{file}", "Accept-Encoding: gzip\r\nRange: bytes=-7\r\nIf-Range: \"x\""},
		{"HEAD", "/fhir/exports/{job}/files/{file}", "Accept-Encoding: identity;q=0, *;q=0\r\nIf-Match: W/\"a\", \"b\""},
		{"GET", "/fhir/exports/{job}/files/{bad}", "If-None-Match: \"{marker}\", *\r\nRange: bytes=99999-"},
		{"GET", "/fhir/exports/{job}/files/../{file}", "Range: bytes=0-0,2-2"},
		{"POST", "/fhir/Group/g1/$export", "Content-Length: 5\r\nContent-Type: application/json"},
		{"POST", "/fhir/Patient/$export?{marker}", "Content-Length: 29\r\nContent-Type: application/json\r\n\r\n{\"resourceType\":\"Parameters\"}"},
		{"POST", "/fhir/$export", "Content-Length: 78\r\nContent-Type: application/json\r\nPrefer: handling=lenient\r\n\r\n" +
			"{\"resourceType\":\"Parameters\",\"parameter\":[{\"name\":\"_since\",\"valueInstant\":\"x\"}]}"},
		{"GET", "/fhir/$export?_type=Patient&_elements=id&_typeFilter=Patient%3Fgender%3Dmale", "Prefer: handling=lenient"},
		{"GET", "/fhir/$export?_elements={marker}", ""},
		{"GET", "/fhir/$export?_typeFilter=Patient%3F{marker}%3D{marker}", ""},
		{"PUT", "/fhir/exports/{job}", "Content-Length: 70000"},
		{"OPTIONS", "/fhir/exports/{job}", "Origin: https://evil.example.com\r\nAccess-Control-Request-Method: GET"},
		{"TRACE", "/fhir/exports/{job}", "Max-Forwards: 0"},
		{"CONNECT", "fhir.example.org:443", ""},
		{"GET", "http://evil.example.com/fhir/exports/{job}", "X-Forwarded-Host: {marker}"},
		{"GET", "/fhir/exports/..%2f..%2fetc/passwd", "Transfer-Encoding: chunked"},
		{"GET", "//fhir//exports/{job}//", ""},
		{"GET", "/fhir/exports/{marker}/files/{marker}", "Referer: {marker}"},
		{"GET", "/livez", ""},
		{"PROPFIND", "/readyz", ""},
		{"GET", "/fhir/Group/g1/$export?" + strings.Repeat("_type=Patient&", 101), ""},
		{"GET", "/" + strings.Repeat("a", 9000), ""},
	} {
		for who := range byte(callers) {
			f.Add(who, seed.method, seed.target, seed.headers)
		}
	}
	w := newFuzzWorld(f)
	authorizations := [callers][]string{
		owner: w.as("alice"), namesake: w.of(issuerTwo, "alice", "openid"), narrow: w.as("alice", "system/Observation.rs"),
	}
	names := strings.NewReplacer("{job}", string(w.completed), "{run}", string(w.running), "{file}", w.data.Name,
		"{bad}", w.bad.Name, "{marker}", marker)
	f.Fuzz(func(t *testing.T, who byte, method, target, headers string) {
		w.t = t
		who %= callers
		text := names.Replace(method + " " + target + " HTTP/1.1\r\nHost: fhir.example.org\r\n" + headers)
		if who != nobody {
			text += "\r\n" + strings.Join(authorizations[who], ": ")
		}
		request, ok := asServed(text + "\r\n\r\n")
		if !ok {
			return
		}
		got := w.answer(request.WithContext(t.Context()))
		log := w.log.String()
		w.restore(got.header.Get("Content-Location"))
		if t.Failed() || strings.HasPrefix(request.URL.Path, "/livez") || strings.HasPrefix(request.URL.Path, "/readyz") {
			return
		}
		w.checkAnswer(t, request, got)
		w.checkAccess(t, request, who, got)
		if all := fmt.Sprint(got.header, got.body, log); strings.Contains(all, marker) {
			t.Errorf("the response contains the marker: %s", all)
		}
		if strings.Contains(log, `"level":"ERROR"`) {
			t.Errorf("an error is logged: %s", log)
		}
	})
}

// asServed reads a request as the server does, and reports whether the server would call the handler.
func asServed(text string) (*http.Request, bool) {
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil || len(request.Header["Host"]) > 0 || request.RequestURI == "*" {
		return nil, false
	}
	for _, values := range request.Header {
		for _, value := range values {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return nil, false
			}
		}
	}
	return request, true
}

// checkAnswer checks what every response must fulfil.
func (w *fuzzWorld) checkAnswer(t *testing.T, request *http.Request, got reply) {
	wantHeader(t, got, "X-Content-Type-Options", "nosniff", "Cache-Control", "no-store")
	if got.code >= 500 {
		t.Fatalf("%d %s", got.code, got.body)
	}
	length, err := strconv.Atoi(got.header.Get("Content-Length"))
	switch {
	case request.Method == http.MethodHead && got.body != "":
		t.Errorf("an answer to HEAD has a body: %q", got.body)
	case request.Method != http.MethodHead && err == nil && length != len(got.body):
		t.Errorf("%d bytes, Content-Length %d", len(got.body), length)
	}
	if got.code < 400 {
		return
	}
	switch got.code {
	case http.StatusUnauthorized:
		if !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") {
			t.Error("a 401 has no challenge")
		}
	case http.StatusMethodNotAllowed:
		allowed := strings.Split(got.header.Get("Allow"), ", ")
		if got.header.Get("Allow") == "" || slices.Contains(allowed, request.Method) {
			t.Errorf("405 to %s, Allow %q", request.Method, allowed)
		}
	}
	if request.Method == http.MethodHead {
		wantHeader(t, got, "Content-Type", "application/fhir+json")
		return
	}
	wantOutcome(t, got, got.code, "")
}

// checkAccess checks that the caller of a successful request was allowed to make it.
func (w *fuzzWorld) checkAccess(t *testing.T, request *http.Request, who byte, got reply) {
	if got.code >= 400 {
		return
	}
	path := request.URL.Path
	about := fmt.Sprintf("%d to %s %q of caller %d", got.code, request.Method, path, who)
	if who == nobody || who == namesake || len(request.Header.Values("Authorization")) != 1 {
		t.Fatalf("%s, who may do nothing", about)
	}
	switch {
	case got.header.Get("Content-Location") != "":
		if got.code != http.StatusAccepted || !slices.Contains([]string{"GET", "POST"}, request.Method) || !kickoffPath.MatchString(path) ||
			strings.Contains(strings.ToUpper(request.URL.EscapedPath()), "%2F") {
			t.Errorf("%s is taken for a kick-off", about)
		}
	case path == statusPath(w.completed), path == statusPath(w.running):
		if who == narrow && request.Method != http.MethodDelete {
			t.Errorf("%s, who lacks a type", about)
		}
	case path == filePath(w.completed, w.bad):
	case path == filePath(w.completed, w.data):
		if who == narrow {
			t.Errorf("%s, who lacks the type", about)
		}
		w.checkPart(t, request, got)
	default:
		t.Errorf("%s: there is nothing there", about)
	}
}

// checkPart compares the body with the requested part of the file.
func (w *fuzzWorld) checkPart(t *testing.T, request *http.Request, got reply) {
	want := w.plain
	if got.header.Get("Content-Encoding") == "gzip" {
		want = w.packed
	}
	switch got.code {
	case http.StatusPartialContent:
		var first, last, size int
		_, err := fmt.Sscanf(got.header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size)
		if err != nil || size != len(want) || first < 0 || last < first || last >= size {
			t.Fatalf("Content-Range %q of %d bytes (%v)", got.header.Get("Content-Range"), len(want), err)
		}
		want = want[first : last+1]
	case http.StatusNotModified:
		want = nil
	}
	if request.Method == http.MethodGet && got.body != string(want) {
		t.Errorf("%d %q, want %q", got.code, got.body, want)
	}
}
