package httpapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// served is a file behind the API with both of its representations.
type served struct {
	*fixture
	path         string
	file         export.File
	plain, gzip  string
	etag, etagGz string
}

func serveFile(t *testing.T, c content) *served {
	t.Helper()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	file := w.run(id, c)[0]
	object, err := w.objects.Open(t.Context(), file.Key, 0, -1)
	must(t, err)
	defer object.Close()
	packed, err := io.ReadAll(object)
	must(t, err)
	return &served{
		fixture: w, path: filePath(id, file), file: file, plain: c.plain(), gzip: string(packed),
		etag: `"` + file.SHA256 + `"`, etagGz: `"` + file.SHA256 + `-gzip"`,
	}
}

func (s *served) get(headers ...string) reply {
	return s.ask("GET", s.path, append(s.as("alice"), headers...)...)
}

// wantHeader compares headers; "" means absent.
func wantHeader(t *testing.T, got reply, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if values := got.header.Values(pairs[i]); strings.Join(values, "|") != pairs[i+1] {
			t.Errorf("%s: %q, want %q", pairs[i], values, pairs[i+1])
		}
	}
}

// spec 4: gzip for clients that accept it and identity for the others, with correct lengths, strong ETags and a digest;
// HEAD has the same headers without a body. pitfall 31: the API serves the file itself, without a redirect.
func TestFileRepresentations(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(500))
	always := []string{
		"Content-Type", "application/fhir+ndjson", "Vary", "Accept-Encoding", "Cache-Control", "no-store",
		"Accept-Ranges", "bytes", "X-Content-Type-Options", "nosniff", "Content-Range", "", "Location", "",
		"Last-Modified", "",
	}
	identity := append(slices.Clone(always), "Content-Encoding", "", "Content-Length", strconv.Itoa(len(s.plain)),
		"Etag", s.etag, "Repr-Digest", "")
	digest := "sha-256=:" + base64.StdEncoding.EncodeToString(sum(s.gzip)) + ":"
	zipped := append(slices.Clone(always), "Content-Encoding", "gzip", "Content-Length", strconv.Itoa(len(s.gzip)),
		"Etag", s.etagGz, "Repr-Digest", digest)
	if s.file.SHA256 != hex.EncodeToString(sum(s.gzip)) {
		t.Fatal("the recorded digest is not that of the stored bytes")
	}
	for _, test := range []struct {
		encoding []string
		headers  []string
		body     string
	}{
		{nil, identity, s.plain},
		{[]string{"Accept-Encoding", "identity"}, identity, s.plain},
		{[]string{"Accept-Encoding", "gzip"}, zipped, s.gzip},
		{[]string{"Accept-Encoding", "identity;q=0, gzip"}, zipped, s.gzip},
	} {
		got := s.get(test.encoding...)
		if got.code != http.StatusOK || got.body != test.body {
			t.Fatalf("%q: %d, %d bytes, want %d", test.encoding, got.code, len(got.body), len(test.body))
		}
		wantHeader(t, got, test.headers...)
		head := s.ask("HEAD", s.path, append(s.as("alice"), test.encoding...)...)
		if head.code != http.StatusOK || head.body != "" {
			t.Errorf("HEAD %q: %d, %d bytes", test.encoding, head.code, len(head.body))
		}
		wantHeader(t, head, test.headers...)
	}
	for _, encoding := range []string{"identity;q=0", "*;q=0", "gzip;q=0, identity;q=0"} {
		got := s.get("Accept-Encoding", encoding)
		wantOutcome(t, got, http.StatusNotAcceptable, "not-supported", "Accept-Encoding")
		wantHeader(t, got, "Vary", "Accept-Encoding")
	}
	// F-03: Accept is ignored; files are always NDJSON.
	if got := s.get("Accept", "*/*"); got.code != http.StatusOK {
		t.Errorf("Accept */*: %d", got.code)
	}
}

// pitfalls 18 and 33: ranges of both representations, byte by byte, with the total of the representation.
func TestFileRanges(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(500))
	for encoding, whole := range map[string]string{"identity": s.plain, "gzip": s.gzip} {
		size := len(whole)
		last := strconv.Itoa(size - 1)
		total := strconv.Itoa(size)
		etag := map[string]string{"identity": s.etag, "gzip": s.etagGz}[encoding]
		coding := map[string]string{"identity": "", "gzip": "gzip"}[encoding]
		for asked, want := range map[string]struct{ from, to int }{
			"bytes=0-0": {0, 1}, "bytes=0-99": {0, 100}, "bytes=100-299": {100, 300}, "bytes=-1": {size - 1, size},
			"bytes=-250": {size - 250, size}, "bytes=250-": {250, size}, "bytes=0-": {0, size}, "bytes=-999999": {0, size},
			"bytes=" + last + "-": {size - 1, size}, "bytes=" + last + "-" + total: {size - 1, size},
			"bytes=10-99999999999999999999": {10, size},
		} {
			got := s.get("Accept-Encoding", encoding, "Range", asked, "If-Range", etag)
			if got.code != http.StatusPartialContent || got.body != whole[want.from:want.to] {
				t.Fatalf("%s %s: %d, %d bytes", encoding, asked, got.code, len(got.body))
			}
			wantHeader(t, got, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", want.from, want.to-1, size),
				"Content-Length", strconv.Itoa(want.to-want.from), "Content-Encoding", coding,
				"Content-Type", "application/fhir+ndjson", "Vary", "Accept-Encoding")
		}
		for _, asked := range []string{"bytes=" + total + "-", "bytes=99999999999999999999-", "bytes=-0"} {
			got := s.get("Accept-Encoding", encoding, "Range", asked, "If-Range", etag)
			wantOutcome(t, got, http.StatusRequestedRangeNotSatisfiable, "invalid", "Range")
			wantHeader(t, got, "Content-Range", "bytes */"+total, "Content-Encoding", "", "Vary", "Accept-Encoding",
				"Etag", "", "Accept-Ranges", "")
		}
		for _, asked := range []string{"bytes=0-1,5-6", "bytes=2-1", "lines=0-1", "bytes=x", "bytes"} {
			got := s.get("Accept-Encoding", encoding, "Range", asked)
			if got.code != http.StatusOK || got.body != whole {
				t.Errorf("%s %s: %d, %d bytes, want the whole", encoding, asked, got.code, len(got.body))
			}
			wantHeader(t, got, "Content-Range", "")
		}
		// A download in pieces equals the file.
		var pieces strings.Builder
		for at := 0; at < size; at += 700 {
			pieces.WriteString(s.get("Accept-Encoding", encoding, "Range", fmt.Sprintf("bytes=%d-%d", at, at+699), "If-Range", etag).body)
		}
		if pieces.String() != whole {
			t.Errorf("%s: the pieces are not the file", encoding)
		}
	}
	// HTTP libraries ask for gzip unasked, and cannot decode the middle of a stream (B-14).
	for _, accepted := range []string{"gzip", "gzip, deflate, br, zstd", "*", "x-gzip;q=0.5"} {
		got := s.get("Accept-Encoding", accepted, "Range", "bytes=100-199")
		if got.code != http.StatusPartialContent || got.body != s.plain[100:200] {
			t.Errorf("%s: %d %q, want bytes of the identity form", accepted, got.code, got.body)
		}
		wantHeader(t, got, "Content-Encoding", "", "Etag", s.etag, "Vary", "Accept-Encoding", "Repr-Digest", "",
			"Content-Range", fmt.Sprintf("bytes 100-199/%d", len(s.plain)))
	}
	past := s.get("Accept-Encoding", "gzip", "Range", fmt.Sprintf("bytes=%d-", len(s.plain)))
	wantOutcome(t, past, http.StatusRequestedRangeNotSatisfiable, "invalid", "Range")
	wantHeader(t, past, "Content-Range", fmt.Sprintf("bytes */%d", len(s.plain)))
	for _, whole := range [][]string{ // no range applies
		{"Accept-Encoding", "gzip, identity;q=0", "Range", "bytes=100-199"},
		{"Accept-Encoding", "gzip", "Range", "bytes=100-199,300-399"},
		{"Accept-Encoding", "gzip", "Range", "bytes=100-199", "If-Range", `"x"`},
	} {
		got := s.get(whole...)
		if got.code != http.StatusOK || got.body != s.gzip {
			t.Errorf("%q: %d, %d bytes, want the whole gzip form", whole, got.code, len(got.body))
		}
		wantHeader(t, got, "Content-Encoding", "gzip", "Etag", s.etagGz)
	}
	head := s.ask("HEAD", s.path, append(s.as("alice"), "Range", "bytes=0-9")...)
	if head.code != http.StatusOK || head.header.Get("Content-Length") != strconv.Itoa(len(s.plain)) {
		t.Errorf("HEAD with a range: %d, Content-Length %s", head.code, head.header.Get("Content-Length"))
	}
}

// A range of the text costs the blocks that it is in, wherever it is. A file of an earlier version has no index: a range of
// it costs what is before it, so only a few at once are read (P4, R11).
func TestARangeCostsItsBlocks(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	content := bulk(200) // of 12 MB, which do not compress well
	id := w.kickoff(alice, "")
	w.plan(id, "Observation", "Patient")
	indexed := w.write(id, "Observation-00000", content)
	half := len(content.lines) / 2
	first, second := content, content
	first.lines, second.lines = content.lines[:half], content.lines[half:]
	first.typ, second.typ = "Patient", "Patient"
	older := w.write(id, "Patient-00000", first, second)
	w.commit(w.claim(id, "Observation-00000", export.KindExport), indexed)
	w.commit(w.claim(id, "Patient-00000", export.KindExport), older)
	w.seal(id, nil)
	plain := content.plain()
	from := w.objectDoor.Count()
	for _, part := range [][2]int{{len(plain) - 1, 1}, {len(plain) / 2, 10}, {0, 1}, {3 << 20, 2 << 20}, {1<<20 - 1, 2}} {
		headers := append(slices.Clone(alice), "Range", fmt.Sprintf("bytes=%d-%d", part[0], part[0]+part[1]-1))
		for file, most := range map[string]int64{filePath(id, indexed): int64(part[1]) + 3<<20, filePath(id, older): indexed.Stored * 2} {
			from.Store(0)
			got := w.ask("GET", file, headers...)
			if got.code != http.StatusPartialContent || got.body != plain[part[0]:part[0]+part[1]] {
				t.Errorf("%v of %s: %d, %d bytes", part, file, got.code, len(got.body))
			}
			if read := from.Load(); read > most {
				t.Errorf("%v of %s: %d bytes were read from the store, want at most %d", part, file, read, most)
			}
		}
	}
}

// RFC 9110 section 13: conditions apply to the representation that would be sent. TestMatches and TestRangeApplies cover
// the syntax of the headers.
func TestFileConditions(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(50))
	const date = "Wed, 04 Mar 2026 05:06:07 GMT"
	tests := []struct {
		encoding, name, value string
		extra                 []string
		status                int
	}{
		{"identity", "If-None-Match", s.etag, nil, 304},
		{"identity", "If-None-Match", "W/" + s.etag, nil, 304},
		{"identity", "If-None-Match", s.etag, []string{"Range", "bytes=0-9"}, 304},
		{"identity", "If-None-Match", s.etagGz, nil, 200},
		{"gzip", "If-None-Match", s.etagGz, nil, 304},
		{"gzip", "If-None-Match", s.etag, nil, 200},
		{"identity", "If-Match", s.etag, nil, 200},
		{"identity", "If-Match", "W/" + s.etag, nil, 412},
		{"identity", "If-Match", s.etagGz, nil, 412},
		{"gzip", "If-Match", s.etagGz, nil, 200},
		{"gzip", "If-Match", s.etag, []string{"Range", "bytes=0-9"}, 206}, // a range is of the identity form
		{"gzip", "If-Match", `"x"`, []string{"If-None-Match", s.etagGz}, 412},
		{"identity", "If-Range", s.etag, []string{"Range", "bytes=0-9"}, 206},
		{"identity", "If-Range", s.etagGz, []string{"Range", "bytes=0-9"}, 200},
		{"gzip", "If-Range", s.etagGz, []string{"Range", "bytes=0-9"}, 206},
		{"gzip", "If-Range", s.etag, []string{"Range", "bytes=0-9"}, 206},
		{"gzip", "If-Range", "W/" + s.etagGz, []string{"Range", "bytes=0-9"}, 200},
		{"gzip, identity;q=0", "If-Range", s.etag, []string{"Range", "bytes=0-9"}, 200},
		{"gzip, identity;q=0", "If-Range", s.etagGz, []string{"Range", "bytes=0-9"}, 206},
		{"gzip", "If-Range", `"x"`, []string{"Range", "bytes=999999999-"}, 200},
		{"gzip", "If-Modified-Since", date, nil, 200},
		{"gzip", "If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT", nil, 200},
	}
	for _, test := range tests {
		headers := append([]string{"Accept-Encoding", test.encoding, test.name, test.value}, test.extra...)
		got := s.get(headers...)
		if got.code != test.status {
			t.Errorf("%q: %d, want %d", headers, got.code, test.status)
		}
		switch got.code {
		case http.StatusNotModified:
			etag := map[string]string{"identity": s.etag, "gzip": s.etagGz}[test.encoding]
			wantHeader(t, got, "Etag", etag, "Vary", "Accept-Encoding", "Content-Type", "", "Content-Range", "")
			if got.body != "" {
				t.Errorf("%q: a body", headers)
			}
		case http.StatusPreconditionFailed:
			wantHeader(t, got, "Etag", "", "Vary", "")
			wantOutcome(t, got, http.StatusPreconditionFailed, "conflict", "If-Match")
		}
	}
}

// bulk returns a file that exceeds the buffers between the store and a client in both representations.
func bulk(lines int) content {
	source := rand.New(rand.NewPCG(1, 2))
	c := content{typ: "Observation"}
	noise := make([]byte, 45<<10)
	for i := range lines {
		for j := range noise {
			noise[j] = byte(source.Uint32())
		}
		c.lines = append(c.lines, fmt.Sprintf(`{"resourceType":"Observation","id":"made-up-%d","note":[{"text":%q}]}`, i,
			base64.StdEncoding.EncodeToString(noise)))
	}
	return c
}

// If the store fails during a download, the connection is cut, so that the client does not take a part for the whole file.
// It gets the rest by a range with If-Range (pitfall 33).
func TestFileCutAndResumed(t *testing.T) {
	t.Parallel()
	s := serveFile(t, bulk(200))
	for encoding, whole := range map[string]string{"identity": s.plain, "gzip": s.gzip} {
		etag := map[string]string{"identity": s.etag, "gzip": s.etagGz}[encoding]
		s.objectDoor.ShutAfter(3 << 20)
		got, err := s.try("GET", s.path, append(s.as("alice"), "Accept-Encoding", encoding)...)
		if err == nil || got.code != http.StatusOK || len(got.body) == 0 || len(got.body) >= len(whole) {
			t.Fatalf("%s: %d, %d of %d bytes, %v: want a cut answer", encoding, got.code, len(got.body), len(whole), err)
		}
		s.objectDoor.Open()
		rest := s.get("Accept-Encoding", encoding, "If-Range", etag, "Range", fmt.Sprintf("bytes=%d-", len(got.body)))
		if rest.code != http.StatusPartialContent || got.body+rest.body != whole {
			t.Errorf("%s: resumed with %d, %d + %d bytes, want %d", encoding, rest.code, len(got.body), len(rest.body),
				len(whole))
		}
	}
	const counted = `sluice_api_requests_total{code="cut",method="GET",route="/fhir/exports/:job/files/:name"} 2`
	if !strings.Contains(s.metrics(), counted) {
		t.Errorf("no %s", counted)
	}
	if !strings.Contains(s.log.String(), "sending file "+s.file.Name) {
		t.Errorf("the log does not have the cause")
	}
	// A failure before the header is sent is a 503.
	s.objectDoor.Shut()
	for _, headers := range [][]string{nil, {"Accept-Encoding", "gzip"}, {"Range", "bytes=100-"}} {
		got := s.get(headers...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		// The OperationOutcome must not have the headers that describe the file.
		wantHeader(t, got, "Etag", "", "Accept-Ranges", "", "Content-Range", "", "Content-Encoding", "", "Repr-Digest", "",
			"Vary", "", "Expires", "", "X-Progress", "", "Cache-Control", "no-store", "Retry-After", "5")
	}
	// HEAD does not need the store.
	if head := s.ask("HEAD", s.path, s.as("alice")...); head.code != http.StatusOK {
		t.Errorf("HEAD: %d", head.code)
	}
}

// D-07: a download that runs while the job is cancelled and purged completes. (MinIO delays a delete until earlier reads
// are done.)
func TestFileDownloadOutlivesPurge(t *testing.T) {
	t.Parallel()
	s := serveFile(t, bulk(300))
	response, err := s.open("GET", s.path, s.as("alice")...)
	must(t, err)
	defer response.Body.Close()
	first := make([]byte, 1000)
	_, err = io.ReadFull(response.Body, first)
	must(t, err)
	status := s.path[:strings.Index(s.path, "/files/")]
	if got := s.ask("DELETE", status, s.as("alice")...); got.code != http.StatusAccepted {
		t.Fatal(got.code)
	}
	if got := s.get(); got.code != http.StatusNotFound {
		t.Errorf("a new download: %d", got.code)
	}
	began, purged := make(chan struct{}), make(chan error, 1)
	s.objectDoor.Before("", func() { close(began) })
	go func() {
		_, err := s.objects.DeletePrefix(t.Context(), export.JobPrefix(export.JobID(path.Base(status))))
		purged <- err
	}()
	<-began
	rest, err := io.ReadAll(response.Body)
	if err != nil || string(first)+string(rest) != s.plain {
		t.Errorf("%d of %d bytes, %v", len(first)+len(rest), len(s.plain), err)
	}
	if err := <-purged; err != nil {
		t.Error(err)
	}
}

// Whoever can write to Redis cannot have the API serve an object of another job: its owner is another one.
func TestAnObjectOfAnotherJobIsNotServed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alices, bobs := w.kickoff(w.as("alice"), ""), w.kickoff(w.as("bob"), "")
	own, foreign := w.run(alices, patients(2))[0], w.run(bobs, patients(9))[0]
	store, ctx := w.redis(), t.Context()
	results := "sluice:{" + string(alices) + "}:results"
	held, err := store.HGetAll(ctx, results).Result()
	must(t, err)
	for unit, result := range held {
		must(t, store.HSet(ctx, results, unit, strings.ReplaceAll(result, own.Key, foreign.Key)).Err())
	}
	for _, headers := range [][]string{nil, {"Accept-Encoding", "gzip"}, {"Range", "bytes=0-9"}} {
		got := w.ask("GET", filePath(alices, own), append(w.as("alice"), headers...)...)
		wantOutcome(t, got, http.StatusInternalServerError, "exception")
	}
	bob, err := store.HGet(ctx, "sluice:{"+string(bobs)+"}:job", "manifest").Result()
	must(t, err)
	must(t, store.HSet(ctx, "sluice:{"+string(alices)+"}:job", "manifest", bob).Err())
	wantOutcome(t, w.ask("GET", statusPath(alices), w.as("alice")...), http.StatusInternalServerError, "exception")
	if strings.Contains(w.log.String(), string(bobs)+"/") {
		t.Error("the log repeats what was put into Redis")
	}
}

// A client's disconnect is not logged as an error, but the connection is still cut.
func TestFileClientGone(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(500))
	request := httptest.NewRequestWithContext(t.Context(), "GET", s.path, nil)
	request.Header.Set("Authorization", s.as("alice")[1])
	func() {
		defer func() {
			if cause := recover(); cause != http.ErrAbortHandler { //nolint:errorlint // the very value is meant
				t.Errorf("the answer ends with %v, want it cut", cause)
			}
		}()
		s.handler.ServeHTTP(deafWriter{httptest.NewRecorder()}, request)
	}()
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `"level":"INFO"`) || !strings.Contains(last, `"cut":true`) {
		t.Errorf("logged as %s", last)
	}
}

// deafWriter is a connection whose client has disconnected.
type deafWriter struct{ http.ResponseWriter }

func (deafWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// An object that is missing although its job exists is a server error. TestNotAvailable covers a job that is purged between
// the read of its record and the read of the object.
func TestFileObjectMissing(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(5))
	status := s.path[:strings.Index(s.path, "/files/")]
	id := export.JobID(strings.TrimPrefix(status, "/fhir/exports/"))
	_, err := s.objects.DeletePrefix(t.Context(), export.JobPrefix(id))
	must(t, err)
	wantOutcome(t, s.get(), http.StatusInternalServerError, "exception")
	wantOutcome(t, s.ask("GET", status, s.as("alice")...), http.StatusInternalServerError, "exception")
}

// A stored file may consist of several gzip members; clients get all of them.
func TestFileOfSeveralMembers(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id, "Patient")
	lines := []content{patients(1), patients(2), patients(3)}
	file := w.write(id, "Patient-00000", lines...)
	w.commit(w.claim(id, "Patient-00000", export.KindExport), file)
	w.seal(id, nil)
	plain := lines[0].plain() + lines[1].plain() + lines[2].plain()
	if got := w.ask("GET", filePath(id, file), w.as("alice")...); got.code != http.StatusOK || got.body != plain {
		t.Errorf("%d %q, want %q", got.code, got.body, plain)
	}
}

// A file that was replaced in the bucket is never served as a complete one: the connection is cut before the last byte.
func TestAReplacedFileIsCut(t *testing.T) {
	t.Parallel()
	s := serveFile(t, patients(5000))
	altered := []byte(s.gzip)
	pack := func(text string) []byte {
		var packed bytes.Buffer
		zip := gzip.NewWriter(&packed)
		_, err := zip.Write([]byte(text))
		must(t, errors.Join(err, zip.Close()))
		return packed.Bytes()
	}
	altered[len(altered)-1] ^= 1 // a byte of the size in the trailer
	plain := []byte(s.plain)
	plain[len(plain)/2] ^= 1
	for name, object := range map[string][]byte{
		"another text of the same length": pack(string(plain)), "a longer text": pack(s.plain + "{}\n"),
		"a shorter text": pack(s.plain[:len(s.plain)/2]),
		"its trailer":    altered, "its beginning": altered[:len(altered)/2], "no gzip": plain,
	} {
		s.put(s.file.Key, object)
		for encoding, whole := range map[string]string{"identity": s.plain, "gzip": s.gzip} {
			got, err := s.try("GET", s.path, append(s.as("alice"), "Accept-Encoding", encoding)...)
			if got.code == http.StatusOK && err == nil || len(got.body) >= len(whole) {
				t.Errorf("%s as %s: %d, %d bytes, %v: want a cut answer", name, encoding, got.code, len(got.body), err)
			}
		}
	}
	s.put(s.file.Key, []byte(s.gzip))
	if got := s.get(); got.body != s.plain {
		t.Errorf("the committed object: %d", got.code)
	}
}
