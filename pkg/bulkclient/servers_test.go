package bulkclient

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// answer is one response of an otherServer. SELF and OTHER in texts stand for the origins of the server and of its store.
type answer struct {
	status int
	header map[string]string
	body   string
}

type routes = map[string][]answer

// otherServer answers the requests to a path in order, and repeats the last answer of a path.
type otherServer struct {
	*httptest.Server
	store *httptest.Server // another origin, with the same answers

	mu      sync.Mutex
	answers routes
	seen    []*http.Request // without bodies
}

func newOtherServer(t *testing.T, answers routes) *otherServer {
	s := &otherServer{answers: answers}
	s.Server, s.store = httptest.NewServer(s), httptest.NewServer(s)
	t.Cleanup(s.Close)
	t.Cleanup(s.store.Close)
	return s
}

func (s *otherServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r.Clone(r.Context()))
	answers := s.answers[r.URL.Path]
	if len(answers) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if len(answers) > 1 {
		s.answers[r.URL.Path] = answers[1:]
	}
	replace := strings.NewReplacer("SELF", s.URL, "OTHER", s.store.URL).Replace
	for name, value := range answers[0].header {
		w.Header()[name] = []string{replace(value)} // with the case of the table
	}
	w.WriteHeader(answers[0].status)
	_, _ = io.WriteString(w, replace(answers[0].body))
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	file := &stored{}
	file.set([]byte(text))
	return string(file.body)
}

// TestOtherServers: the client takes an export home from servers that behave as those of the field do.
func TestOtherServers(t *testing.T) {
	const (
		kick   = "/fhir/Group/g/$export"
		lines  = `{"resourceType":"Patient","id":"1"}` + "\n" + `{"id":"2","resourceType":"Patient"}` + "\n"
		prefer = `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"processing",` +
			`"diagnostics":"HAPI-0513: Must request async processing for $export"}]}`
	)
	accepted := func(location string) answer { return answer{202, map[string]string{"Content-Location": location}, ""} }
	pending := func(header map[string]string) answer { return answer{202, header, ""} }
	ok := func(body string) answer { return answer{200, nil, body} }
	manifest := func(members string) answer {
		return ok(`{"transactionTime":"2026-01-02T03:04:05.678+00:00","request":"SELF` + kick + `",` + members + `}`)
	}
	for name, test := range map[string]struct {
		answers  routes
		waits    []time.Duration
		warnings []string
		tokens   int // requests with the token, -1: all
		failure  string
	}{
		"HAPI: Prefer required, job in the query, files are Binary resources, no error, no count": {answers: routes{
			kick: {{400, nil, prefer}, accepted("SELF/fhir/$export-poll-status?_jobId=ab-1")},
			"/fhir/$export-poll-status": {pending(map[string]string{"Retry-After": "120", "X-Progress": "Build in progress"}),
				manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/fhir/Binary/x1"}],"msg":null`)},
			"/fhir/Binary/x1": {{200, map[string]string{"Content-Type": "application/fhir+ndjson"}, lines}},
		}, waits: []time.Duration{2 * time.Minute}, warnings: []string{"the manifest has no error"}, tokens: -1},
		"BCDA: job at another path, no Retry-After, gzip without Content-Encoding": {answers: routes{
			kick: {{400, nil, `{"error":"Prefer header is required"}`}, accepted("SELF/api/v2/jobs/7")},
			"/api/v2/jobs/7": {pending(map[string]string{"X-Progress": "In Progress, 10%"}), ok(`{
				"transactionTime":"2026-01-02T03:04:05.5Z","request":"SELF/x","requiresAccessToken":true,
				"output":[{"type":"Patient","url":"SELF/data/7/a.ndjson"}],
				"error":[],"JobID":7}`)},
			"/data/7/a.ndjson": {ok(zipped(t, lines))},
		}, waits: []time.Duration{time.Second}, tokens: -1},
		"SMART: manifest as fhir+json with a charset, count in quotes, dates in another form": {answers: routes{
			kick: {{422, nil, `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"processing",` +
				`"diagnostics":"The \"Prefer\" header must be \"respond-async\""}]}`}, accepted("SELF/fhir/bulkstatus/1")},
			"/fhir/bulkstatus/1": {{200, map[string]string{"Content-Type": "application/fhir+json; charset=utf-8"},
				`{"transactionTime":"Fri Jan 02 2026 03:04:05","request":"SELF/x","requiresAccessToken":true,"output":` +
					`[{"type":"Patient","count":"2","url":"SELF/fhir/bulkfiles/1.Patient.ndjson"}],"deleted":[],"error":[]}`}},
			"/fhir/bulkfiles/1.Patient.ndjson": {ok(lines)},
		}, warnings: []string{`the manifest's transactionTime "Fri Jan 02 2026 03:04:05" is not an instant`}, tokens: -1},
		"Cerner: files redirect to a store on another origin that gets no token": {answers: routes{
			kick:           {accepted("SELF/fhir/jobs/1")},
			"/fhir/jobs/1": {manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/files/1"}],"error":[]`)},
			"/files/1":     {{307, map[string]string{"Location": "OTHER/signed/1?x-signature=s"}, ""}},
			"/signed/1":    {{200, map[string]string{"Content-Encoding": "gzip"}, zipped(t, lines)}},
		}, tokens: 3},
		"Azure: presigned URLs on another origin, no token": {answers: routes{
			kick: {accepted("SELF/fhir/_operations/export/1")},
			"/fhir/_operations/export/1": {manifest(`"requiresAccessToken":false,"output":[{"type":"Patient","url":` +
				`"OTHER/c/Patient-1.ndjson?sig=s","count":2}],"error":[],"issues":[]`)},
			"/c/Patient-1.ndjson": {ok(lines)},
		}, tokens: 2},
		"requiresAccessToken missing: the token goes to the own origin only": {answers: routes{
			kick: {accepted("SELF/fhir/jobs/1")},
			"/fhir/jobs/1": {manifest(`"output":[{"type":"Patient","url":"OTHER/a","count":1},` +
				`{"type":"Patient","url":"SELF/b","count":1}],"error":[]`)},
			"/a": {ok(lines[:strings.Index(lines, "\n")])},
			"/b": {ok(lines[strings.Index(lines, "\n")+1:])},
		}, warnings: []string{"the manifest has no requiresAccessToken"}, tokens: 3},
		"LinuxForHealth: relative URLs, no request": {answers: routes{
			kick: {accepted("/fhir/$bulkdata-status?job=1")},
			"/fhir/$bulkdata-status": {ok(`{"transactionTime":"2026-01-02T03:04:05.82Z","requiresAccessToken":true,"error":[],` +
				`"output":[{"type":"Patient","url":"out/Patient_1.ndjson","count":2}]}`)},
			"/fhir/out/Patient_1.ndjson": {ok(lines)},
		}, warnings: []string{"the manifest has no request"}, tokens: -1},
		"a job not found at first, a body with the 202, Location for Content-Location": {answers: routes{
			kick: {{202, map[string]string{"location": "SELF/jobs/1"}, `{"id":"1"}`}},
			"/jobs/1": {{404, nil, ""}, {404, nil, "<h1>Not found</h1>"}, pending(map[string]string{"RETRY-AFTER": "1500"}),
				manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/p"}],"error":[]`)},
			"/p": {ok(lines)},
		}, waits: []time.Duration{time.Second, 2 * time.Second, 1500 * time.Millisecond}, tokens: -1},
		"a 500 of a proxy while polling, a date in Retry-After": {answers: routes{
			kick: {accepted("SELF/jobs/1")},
			"/jobs/1": {{500, nil, "<html><title>Oops</title></html>"},
				pending(map[string]string{"Retry-After": "Mon, 02 Jan 2006 15:04:05 GMT"}),
				manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/p"}],"error":[]`)},
			"/p": {ok(lines)},
		}, waits: []time.Duration{time.Second, 2 * time.Second}, tokens: -1},
		"200 at once with a status URL": {answers: routes{
			kick:      {{200, map[string]string{"Content-Location": "SELF/jobs/1"}, "{}"}},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/p"}],"error":[]`)},
			"/p":      {ok(lines)},
		}, tokens: -1},
		"no type, and a file that says gzip but was decompressed on the way": {answers: routes{
			kick:      {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[{"url":"SELF/p"}],"error":[]`)},
			"/p":      {{200, map[string]string{"Content-Encoding": "gzip"}, lines}},
		}, tokens: -1},
		"200 with a result": {answers: routes{kick: {ok(`{"resourceType":"Bundle"}`)}},
			failure: "it does not export asynchronously"},
		"a manifest in pages, of which one is late": {answers: routes{
			kick: {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/1"}],"error":[],` +
				`"link":[{"relation":"self","url":"SELF/jobs/1"},{"relation":"next","url":"2"}]`)},
			"/jobs/2": {pending(map[string]string{"Retry-After": "1500"}),
				manifest(`"requiresAccessToken":true,"output":[],"error":[],"link":[{"relation":"next","url":"SELF/jobs/3"}]`)},
			"/jobs/3": {manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"SELF/3"}],"error":[],"link":[]`)},
			"/1":      {ok(`{"resourceType":"Patient","id":"1"}`)},
			"/3":      {ok(`{"resourceType":"Patient","id":"2"}`)},
		}, waits: []time.Duration{1500 * time.Millisecond}, tokens: -1},
		"a page of another export": {answers: routes{
			kick:      {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[],"error":[],"link":[{"relation":"next","url":"SELF/2"}]`)},
			"/2":      {manifest(`"requiresAccessToken":false,"output":[],"error":[]`)},
		}, failure: "of different exports"},
		"a page on another origin": {answers: routes{
			kick:      {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[],"error":[],"link":[{"relation":"next","url":"OTHER/2"}]`)},
			"/2":      {manifest(`"requiresAccessToken":true,"output":[],"error":[]`)},
		}, failure: "is not on the origin of the base URL"},
		"pages in a circle": {answers: routes{
			kick:      {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[],"error":[],"link":[{"relation":"next","url":"SELF/2"}]`)},
			"/2":      {manifest(`"requiresAccessToken":true,"output":[],"error":[],"link":[{"relation":"next","url":"SELF/2"}]`)},
		}, failure: "a circle"},
		"an error as a page": {answers: routes{
			kick: {{403, nil, "<!doctype html><html><head><title>Access\n denied</title></head></html>"}},
		}, failure: "the server answered 403 Forbidden: Access denied"},
		"an error as JSON": {answers: routes{kick: {{403, nil, `{"message":"no such scope"}`}}},
			failure: `403 Forbidden: {"message":"no such scope"}`},
		"a token is required, on another origin": {answers: routes{
			kick:      {accepted("SELF/jobs/1")},
			"/jobs/1": {manifest(`"requiresAccessToken":true,"output":[{"type":"Patient","url":"OTHER/p"}],"error":[]`)},
			"/p":      {ok(lines)},
		}, failure: "is not on the origin of the base URL"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newOtherServer(t, test.answers)
			c, err := New(Config{Base: s.URL + "/fhir/", Tokens: fixed("t0"), Parallel: 1})
			must(t, err)
			t.Cleanup(c.Close)
			slept := &waits{}
			c.sleep = slept.sleep
			dir := filepath.Join(t.TempDir(), "out")
			report, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir})
			withToken := 0
			for _, r := range s.seen {
				if r.Header.Get("Authorization") == "Bearer t0" {
					if withToken++; r.Host != strings.TrimPrefix(s.URL, "http://") {
						t.Errorf("the token was sent to another origin: %s", r.URL.Path)
					}
				}
			}
			if test.failure != "" {
				if err == nil || !strings.Contains(err.Error(), test.failure) {
					t.Errorf("error %v, want %q", err, test.failure)
				}
				return
			}
			must(t, err)
			if report.Total.Resources != 2 || len(report.Types) != 1 || report.Types[0].Type != "Patient" {
				t.Errorf("report %+v", report)
			}
			if !slices.Equal(report.Warnings, test.warnings) && len(report.Warnings)+len(test.warnings) > 0 {
				t.Errorf("warnings %q, want %q", report.Warnings, test.warnings)
			}
			if !slices.Equal(slept.all, test.waits) {
				t.Errorf("waited %v, want %v", slept.all, test.waits)
			}
			if test.tokens >= 0 && withToken != test.tokens || test.tokens < 0 && withToken != len(s.seen) {
				t.Errorf("%d of %d requests had the token", withToken, len(s.seen))
			}
			again, err := Verify(t.Context(), dir, nil)
			if err != nil || again.Total.Resources != 2 || again.Types[0].Type != "Patient" {
				t.Errorf("verify: %+v, %v", again, err)
			}
		})
	}
}

// TestJobID: the id is found in the URLs of the servers of the field.
func TestJobID(t *testing.T) {
	for location, want := range map[string]string{
		"https://a.org/fhir/jobs/x1": "x1", "https://a.org/fhir/$export-poll-status?_jobId=ab-1": "ab-1",
		"https://a.org/fhir/$bulkdata-status?job=7": "7", "https://a.org/jobs/1?y=2": "1", "%": "",
	} {
		if got := (Job{StatusURL: location}).ID(); got != want {
			t.Errorf("%s: %q, want %q", location, got, want)
		}
	}
}

// TestLongLineIsStored: what the server serves, the client and verify take, wherever the type is (pitfall 45).
func TestLongLineIsStored(t *testing.T) {
	s := newFakeServer(t)
	line := `{"content":[{"attachment":{"data":"` + strings.Repeat("A", 17<<20) +
		`"}}],"id":"d1","resourceType":"DocumentReference"}`
	file := s.addLines(ListOutput, "DocumentReference", "x.ndjson", []byte(line+"\n"))
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	mustExport(t, c, Options{Dir: dir})
	if !bytes.Equal(content(t, dir, "DocumentReference.ndjson"), file.plain) {
		t.Error("the file differs from the served one")
	}
	if _, err := Verify(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
}

// TestBombsEnd: a file ends soon after it has more lines than announced, or the export more bytes than allowed.
func TestBombsEnd(t *testing.T) {
	const size = 16 << 20
	for name, test := range map[string]struct {
		plain []byte
		body  []byte // as it comes; nil: the lines with gzip
		opts  Options
		want  error
	}{
		"more lines than announced": {bytes.Repeat([]byte(`{"resourceType":"Patient"}`+"\n"), size/27), nil, Options{}, ErrMismatch},
		"more bytes than allowed": {slices.Concat([]byte(`{"resourceType":"Patient","x":"`), make([]byte, size), []byte(`"}`)),
			nil, Options{MaxBytes: 1 << 20}, ErrTooLarge},
		"more compressed bytes than allowed": {nil, bytes.Repeat([]byte(zipped(t, "")), size/20), Options{MaxBytes: 1 << 20}, ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			file := s.addLines(ListOutput, "Patient", "p.ndjson", test.plain)
			one := int64(1)
			file.count = &one
			if test.body != nil {
				file.body, file.digest = test.body, ""
			}
			seen := &most{}
			c, _ := newClient(t, s, func(cfg *Config) { cfg.Observer = seen })
			opts := test.opts
			opts.Dir = t.TempDir()
			_, err := c.Export(t.Context(), Request{Group: "g"}, opts)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if seen.bytes > 4<<20 {
				t.Errorf("unpacked %d bytes", seen.bytes)
			}
		})
	}
	s := newFakeServer(t)
	s.add(ListOutput, "Patient", "a.ndjson", 100)
	s.add(ListOutput, "Patient", "b.ndjson", 100)
	c, _ := newClient(t, s, nil)
	all := int64(len(s.files["a.ndjson"].plain) + len(s.files["b.ndjson"].plain))
	_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir(), MaxBytes: all - 1})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("two files: %v", err)
	}
	mustExport(t, c, Options{Dir: t.TempDir(), MaxBytes: all})
}

// most counts the bytes that were unpacked, without what was taken back.
type most struct {
	recorder
	bytes int64
}

func (m *most) Advanced(_ File, _, bytes int64) { m.bytes += max(bytes, 0) }

// TestManifestIsReadItemByItem: a manifest ends at its first item that is no file, and at a number of files.
func TestManifestIsReadItemByItem(t *testing.T) {
	from, err := url.Parse("https://a.org/jobs/1")
	must(t, err)
	for _, begin := range []string{`{"output":[{"url":"`, `{"`, `{"extension":{"x":"`, `{"request":"`, `{"output":[{"x":["`} {
		text := &endless{head: begin, item: "xxxxxxxxxxxxxxxx"}
		if _, err := readManifest(text, from); !errors.Is(err, ErrMismatch) || text.read > 3*maxItem {
			t.Errorf("%s: %v after %d bytes", begin, err, text.read)
		}
	}
	for _, blanks := range []int{0, maxItem / 2, 2 * maxItem} {
		text := `{"request":"r","output":[{"url":"a"}` + strings.Repeat(" ", blanks) + `,{"url":"b"}]}`
		manifest, err := readManifest(strings.NewReader(text), from)
		if err == nil && len(manifest.Output) != 2 || err != nil && (!errors.Is(err, ErrMismatch) || blanks < maxItem) {
			t.Errorf("%d blanks: %+v, %v", blanks, manifest, err)
		}
	}
	for depth, wrong := range map[int]bool{maxNesting: false, maxNesting + 1: true} {
		nested := strings.Repeat("[", depth) + strings.Repeat("]", depth)
		_, err := readManifest(strings.NewReader(`{"x":`+nested+`,"request":"r","output":[]}`), from)
		if errors.Is(err, ErrMismatch) != wrong || (err != nil) != wrong {
			t.Errorf("%d levels: %v", depth, err)
		}
	}
	const most = 50_000
	for item, want := range map[string]int{`{}`: 1, `{"url":"x"}`: most} {
		items := &endless{head: `{"request":"r","output":[`, item: item + ","}
		_, err := newManifestReader(items, from, most).read()
		if read := items.read / len(item+","); !errors.Is(err, ErrMismatch) || read > want+most {
			t.Errorf("%s: %v after %d items", item, err, read)
		}
	}
}

// endless is a manifest whose list does not end.
type endless struct {
	head, item string
	read       int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.head)
	e.head = e.head[n:]
	for n+len(e.item) <= len(p) && e.head == "" {
		n += copy(p[n:], e.item)
	}
	e.read += n
	return n, nil
}

// TestHTTPSIsKept: a server with https names no job and no file with plain http, with or without a token.
func TestHTTPSIsKept(t *testing.T) {
	https, err := url.Parse("https://a.org/jobs/1")
	must(t, err)
	text := `{"request":"r","requiresAccessToken":false,"output":[{"type":"Patient","url":"http://a.org/p"}]}`
	if _, err := readManifest(strings.NewReader(text), https); !errors.Is(err, ErrInsecureHTTP) {
		t.Errorf("file: %v", err)
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Location", "http://"+r.Host+"/jobs/1")
		w.WriteHeader(http.StatusAccepted)
	}))
	defer s.Close()
	c, err := New(Config{Base: s.URL, Parallel: 1})
	must(t, err)
	defer c.Close()
	c.http.Transport = s.Client().Transport
	if _, err := c.KickOff(t.Context(), Request{Group: "g"}); !errors.Is(err, ErrInsecureHTTP) {
		t.Errorf("job: %v", err)
	}
	s.Client().CloseIdleConnections()
}

// TestFolderOfThePreviousVersion: the files of an unfinished folder with names from URLs keep their names.
func TestFolderOfThePreviousVersion(t *testing.T) {
	s := newFakeServer(t)
	done := s.add(ListOutput, "Patient", "Patient.p.1.0.ndjson", 30)
	begun := s.add(ListOutput, "Patient", "Patient.q.1.0.ndjson", 300)
	s.add(ListOutput, "Patient", "Patient.r.1.0.ndjson", 10)
	c, _ := newClient(t, s, nil)
	dir := t.TempDir()
	folder, err := openFolder(dir)
	must(t, err)
	location := s.base() + "/jobs/1"
	must(t, folder.save(stateFile, map[string]any{
		"base": s.base(), "group": "g", "types": []string{}, "keep_gzip": false, "status_url": location, "ig": false,
		"accepted": "2026-01-02T03:04:05Z",
	}))
	must(t, os.WriteFile(filepath.Join(dir, "Patient.p.1.0.ndjson"), done.plain, 0o600))
	must(t, folder.record(location+"/Patient.p.1.0.ndjson", StoredFile{
		File: "Patient.p.1.0.ndjson", Size: int64(len(done.plain)), Bytes: int64(len(done.plain)), Resources: 30,
		SHA256: sha(done.plain),
	}))
	must(t, folder.save("Patient.q.1.0.ndjson"+metaSuffix, meta{
		URL: location + "/Patient.q.1.0.ndjson", ETag: begun.etag, Length: int64(len(begun.body)),
		Encoding: "gzip", Digest: begun.digest,
	}))
	must(t, os.WriteFile(filepath.Join(dir, "Patient.q.1.0.ndjson.part"), begun.body[:1000], 0o600))
	must(t, folder.Close())
	mustExport(t, c, Options{Dir: dir, Resume: true})
	want := []string{"Patient.ndjson", "Patient.p.1.0.ndjson", "Patient.q.1.0.ndjson", manifestFile}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("the folder holds %v, want %v", got, want)
	}
	if s.countOf("GET /fhir/jobs/1/Patient.p") != 0 || s.countOf("GET /fhir/jobs/1/Patient.q.1.0.ndjson bytes=1000-") != 1 {
		t.Errorf("requested %q", s.requests())
	}
	if _, err := Verify(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
}

// TestOrderOfTheManifestChanges: a resumed export keeps the files that it has, if the server lists them in another order.
func TestOrderOfTheManifestChanges(t *testing.T) {
	s := newFakeServer(t)
	for _, name := range []string{"a.ndjson", "b.ndjson", "c.ndjson"} {
		s.add(ListOutput, "Patient", name, 20)
	}
	s.files["c.ndjson"].refuse = []int{500}
	c, _ := newClient(t, s, func(cfg *Config) { cfg.Parallel = 1 })
	dir := t.TempDir()
	mustFail(t, c, Options{Dir: dir})
	s.mu.Lock()
	slices.Reverse(s.order)
	s.mu.Unlock()
	mustExport(t, c, Options{Dir: dir, Resume: true})
	for name, from := range map[string]string{
		"Patient.ndjson": "a.ndjson", "Patient.2.ndjson": "b.ndjson", "Patient.3.ndjson": "c.ndjson",
	} {
		if !bytes.Equal(content(t, dir, name), s.files[from].plain) {
			t.Errorf("%s is not %s", name, from)
		}
	}
	if _, err := Verify(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
}

// TestStatusURL: an export that another program kicked off, or whose folder is lost, is taken from its status URL.
func TestStatusURL(t *testing.T) {
	s := newFakeServer(t)
	s.add(ListOutput, "Patient", "a.ndjson", 20)
	s.add(ListOutput, "Device", "b.ndjson", 20).refuse = []int{500}
	c, _ := newClient(t, s, nil)
	opts := Options{Dir: t.TempDir(), StatusURL: s.base() + "/jobs/1"}
	_, err := c.Export(t.Context(), Request{}, opts)
	var refused *ServerError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	opts.Resume = true
	report, err := c.Export(t.Context(), Request{}, opts)
	must(t, err)
	if report.Total.Resources != 40 || report.StatusURL != opts.StatusURL || report.Job != "1" || report.Folder != opts.Dir {
		t.Errorf("report %+v", report)
	}
	if n := s.countOf("GET /fhir/Group/"); n != 0 {
		t.Errorf("%d kick-offs", n)
	}
	opts.StatusURL += "0"
	if _, err := c.Export(t.Context(), Request{}, opts); !errors.Is(err, ErrFolder) {
		t.Errorf("another job in the same folder: %v", err)
	}
}

func TestRefusedKickOffLeavesNoFolder(t *testing.T) {
	s := newFakeServer(t)
	s.kickOffs = []int{403}
	c, _ := newClient(t, s, nil)
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir}); err == nil {
		t.Error("the refused kick-off was no error")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused kick-off left the folder: %v", err)
	}
}

// TestOutcomes: issues of severity information are data that was left out by design; all others are missing data.
func TestOutcomes(t *testing.T) {
	issue := func(severity string) string {
		return `{"resourceType":"OperationOutcome","issue":[{"severity":"` + severity + `","diagnostics":"x"}]}`
	}
	for name, test := range map[string]struct {
		lines                string
		incomplete, withheld int64
	}{
		"information":    {issue("information"), 0, 1},
		"warning":        {issue("warning") + "\n" + issue("information"), 1, 1},
		"error and more": {issue("error") + "\n" + strings.Repeat(issue("information")+"\n", 30), 1, 30},
		"late error":     {strings.Repeat(issue("information")+"\n", 30) + issue("error"), 1, 30},
		"no severity":    {issue(""), 1, 0},
		"no issue":       {`{"resourceType":"OperationOutcome"}`, 1, 0},
		"long": {`{"resourceType":"OperationOutcome","x":"` + strings.Repeat("x", 3*maxOutcome) + `"}` + "\n" +
			issue("error"), 2, 0},
	} {
		for _, keep := range []bool{false, true} {
			s := newFakeServer(t)
			s.addLines(ListError, "OperationOutcome", "e.ndjson", []byte(test.lines)).count = nil
			c, _ := newClient(t, s, nil)
			report, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: t.TempDir(), KeepGzip: keep})
			must(t, err)
			if report.Incomplete != test.incomplete || report.Withheld != test.withheld {
				t.Errorf("%s: %d and %d, want %d and %d", name, report.Incomplete, report.Withheld, test.incomplete, test.withheld)
			}
			if len(report.Problems) != int(min(20, test.incomplete)) || len(report.Notes) != int(min(20, test.withheld)) {
				t.Errorf("%s: %q, %q", name, report.Problems, report.Notes)
			}
		}
	}
}
