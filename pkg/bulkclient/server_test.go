package bulkclient

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stored is a file on the fakeServer.
type stored struct {
	list     List
	typ      string
	body     []byte // as stored
	plain    []byte
	identity bool
	etag     string
	digest   string
	count    *int64
	cuts     []int // the n'th response is cut after this many bytes; -1: not cut
	refuse   []int // status codes of the first responses
	stall    bool  // the first response stalls after half of its bytes
	moved    string
}

// fakeServer implements the server side of the protocol, with injected faults. Its fields are set before the first
// request, or under its mutex.
type fakeServer struct {
	*httptest.Server
	t *testing.T

	mu         sync.Mutex
	files      map[string]*stored
	order      []string
	pending    int    // 202s before the manifest
	retryAfter string // of a 202
	kickOffs   []int  // status codes of the first responses to kick-offs
	polls      []int  // status codes of the first responses to polls, before pending counts
	location   string // of Content-Location; "" for the right one
	open       bool   // requiresAccessToken: false
	token      string // the accepted token; "" for any
	hangUp     bool   // no request is answered
	body       string // in place of the manifest
	outage     string // Retry-After of refusals; "" for 3
	seen       []*http.Request
	bodies     []string          // of the requests in seen
	outcome    string            // diagnostics of refusals
	onPoll     func()            // called with each poll
	after      map[string]func() // called under the mutex after a file's response
}

func newFakeServer(t *testing.T) *fakeServer {
	s := &fakeServer{t: t, files: make(map[string]*stored), retryAfter: "100", after: make(map[string]func())}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *fakeServer) base() string { return s.URL + "/fhir" }

// add stores a gzipped file with this many resources, which hardly compress.
func (s *fakeServer) add(list List, typ, name string, resources int) *stored {
	random := rand.New(rand.NewPCG(1, uint64(len(s.order))))
	var plain bytes.Buffer
	for i := range resources {
		fmt.Fprintf(&plain, `{"resourceType":%q,"id":"%s-%d","x":"`, typ, strings.ToLower(typ), i)
		for range 20 {
			fmt.Fprintf(&plain, "%016x", random.Uint64())
		}
		plain.WriteString("\"}\n")
	}
	return s.addLines(list, typ, name, plain.Bytes())
}

func (s *fakeServer) addLines(list List, typ, name string, plain []byte) *stored {
	file := &stored{list: list, typ: typ}
	file.set(plain)
	s.files[name] = file
	s.order = append(s.order, name)
	return file
}

// set sets the file's content and the fields derived from it.
func (f *stored) set(plain []byte) {
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, err := zip.Write(plain)
	if err != nil || zip.Close() != nil {
		panic("gzip into memory")
	}
	f.plain = plain
	f.body = zipped.Bytes()
	f.etag = fmt.Sprintf(`"%x"`, sha256.Sum256(f.body))
	f.digest = digestOf(f.body)
	n := int64(bytes.Count(plain, []byte{'\n'}))
	f.count = &n
}

func digestOf(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha-512=:AAAA:, sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Errorf("read a request: %v", err)
	}
	s.mu.Lock()
	s.seen = append(s.seen, r.Clone(context.Background()))
	s.bodies = append(s.bodies, string(body))
	good := s.token == "" || r.Header.Get("Authorization") == "Bearer "+s.token
	hangUp := s.hangUp
	s.mu.Unlock()
	if hangUp {
		panic(http.ErrAbortHandler)
	}
	if !good {
		s.refuse(w, http.StatusUnauthorized)
		return
	}
	switch {
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusAccepted)
	case strings.HasSuffix(r.URL.Path, "/$export"):
		s.kickOff(w)
	case strings.HasSuffix(r.URL.Path, "/jobs/1"):
		s.status(w)
	default:
		s.file(w, r)
	}
}

func (s *fakeServer) refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.Header().Set("Retry-After", cmp.Or(s.outage, "3"))
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(fhir.Outcome("error", "forbidden", s.outcome)); err != nil {
		s.t.Errorf("send a refusal: %v", err)
	}
}

func next(codes *[]int) int {
	if len(*codes) == 0 {
		return 0
	}
	code := (*codes)[0]
	*codes = (*codes)[1:]
	return code
}

func (s *fakeServer) kickOff(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if code := next(&s.kickOffs); code != 0 {
		s.refuse(w, code)
		return
	}
	location := s.location
	if location == "" {
		location = s.base() + "/jobs/1"
	}
	w.Header().Set("Content-Location", location)
	w.WriteHeader(http.StatusAccepted)
}

func (s *fakeServer) status(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onPoll != nil {
		s.onPoll()
	}
	if code := next(&s.polls); code != 0 {
		s.refuse(w, code)
		return
	}
	if s.pending > 0 {
		s.pending--
		w.Header().Set("Retry-After", s.retryAfter)
		w.Header().Set("X-Progress", "started")
		w.Header().Set("X-Progress-Percent", "40")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if s.body != "" {
		if _, err := io.WriteString(w, s.body); err != nil {
			s.t.Errorf("send the body: %v", err)
		}
		return
	}
	manifest := Manifest{
		TransactionTime: "2026-01-02T03:04:05Z", Request: s.base() + "/Group/g/$export", RequiresAccessToken: !s.open,
		Output: []Item{}, Deleted: []Item{}, Error: []Item{},
	}
	for _, name := range s.order {
		file := s.files[name]
		item := Item{Type: file.typ, URL: s.base() + "/jobs/1/" + name, Count: file.count}
		if strings.HasPrefix(name, "http") {
			item.URL = name
		}
		switch file.list {
		case ListError:
			manifest.Error = append(manifest.Error, item)
		case ListDeleted:
			manifest.Deleted = append(manifest.Deleted, item)
		default:
			manifest.Output = append(manifest.Output, item)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(manifest); err != nil {
		s.t.Errorf("send the manifest: %v", err)
	}
}

func (s *fakeServer) file(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	file := s.files[name]
	if file == nil {
		s.mu.Unlock()
		s.refuse(w, http.StatusNotFound)
		return
	}
	if after := s.after[name]; after != nil {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			after()
		}()
	}
	if code := next(&file.refuse); code != 0 {
		s.mu.Unlock()
		s.refuse(w, code)
		return
	}
	if file.moved != "" {
		s.mu.Unlock()
		http.Redirect(w, r, file.moved, http.StatusTemporaryRedirect)
		return
	}
	body, cut, stall := file.body, -1, file.stall
	if file.identity {
		body = file.plain
	}
	if len(file.cuts) > 0 {
		cut = next(&file.cuts)
	}
	file.stall = false
	head := w.Header()
	head.Set("Content-Type", "application/fhir+ndjson")
	head.Set("ETag", file.etag)
	if file.digest != "" {
		head.Set("Repr-Digest", file.digest)
	}
	if !file.identity {
		head.Set("Content-Encoding", "gzip")
	}
	status := http.StatusOK
	var first int
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); n == 1 && r.Header.Get("If-Range") == file.etag {
		status = http.StatusPartialContent
		head.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(body)-1, len(body)))
		body = body[first:]
	}
	s.mu.Unlock()
	head.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if stall {
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	if cut >= 0 {
		_, _ = w.Write(body[:min(cut, len(body))])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body) // the client may have disconnected
}

// requests returns method, path and range of the requests so far, in order of arrival.
func (s *fakeServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var notes []string
	for _, r := range s.seen {
		notes = append(notes, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	}
	return notes
}

func (s *fakeServer) authorizations() (found []string) {
	for _, r := range s.seen {
		found = append(found, r.Header.Get("Authorization"))
	}
	return found
}

// countOf counts the requests with the prefix.
func (s *fakeServer) countOf(begin string) int {
	n := 0
	for _, request := range s.requests() {
		if strings.HasPrefix(request, begin) {
			n++
		}
	}
	return n
}

// fixed is a token that never changes.
type fixed string

func (f fixed) Token(_ context.Context, refused string) (string, error) {
	if refused == string(f) {
		return "", ErrTokenRefused
	}
	return string(f), nil
}

// recorder is an Observer that counts.
type recorder struct {
	mu               sync.Mutex
	statuses         []Status
	planned          int
	finished         int
	resources, bytes int64
	waits            []time.Duration
}

func (o *recorder) Polled(s Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.statuses = append(o.statuses, s)
}
func (o *recorder) Started(Job)          {}
func (o *recorder) Planned(files []File) { o.mu.Lock(); defer o.mu.Unlock(); o.planned += len(files) }
func (o *recorder) Finished(File)        { o.mu.Lock(); defer o.mu.Unlock(); o.finished++ }
func (o *recorder) Advanced(_ File, resources, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.resources += resources
	o.bytes += bytes
}
func (o *recorder) Waiting(_ error, wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waits = append(o.waits, wait)
}

// newClient returns a client whose waits return at once, and the recorded waits.
func newClient(t *testing.T, s *fakeServer, change func(*Config)) (*Client, *waits) {
	t.Helper()
	cfg := Config{Base: s.base(), Tokens: fixed("t0"), Parallel: 3}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	must(t, err)
	t.Cleanup(c.Close)
	slept := &waits{}
	c.sleep = slept.sleep
	return c, slept
}

type waits struct {
	mu  sync.Mutex
	all []time.Duration
}

func (w *waits) sleep(ctx context.Context, d time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, d)
	return ctx.Err()
}

// names lists a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

func content(t *testing.T, dir, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	return text
}

func unzip(t *testing.T, zipped []byte) []byte {
	t.Helper()
	in, err := gzip.NewReader(bytes.NewReader(zipped))
	must(t, err)
	text, err := io.ReadAll(in)
	must(t, err)
	return text
}

func sha(text []byte) string { sum := sha256.Sum256(text); return hex.EncodeToString(sum[:]) }
