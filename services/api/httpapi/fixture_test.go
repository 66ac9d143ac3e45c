package httpapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const (
	base      = "https://fhir.example.org/fhir" // the public base, not the address of the test server
	audience  = base
	issuerOne = "https://one.example.org"
	issuerTwo = "https://two.example.org"
	retention = 168 * time.Hour
)

// fixture is an API on real stores, each behind a door that a test can close.
type fixture struct {
	t        testing.TB
	clock    *testenv.Clock
	jobs     *jobstore.Store
	objects  *objects.Store
	redisURL string
	place    testenv.S3
	issuers  *tokentest.KeyServer // the keys of both
	key      *ecdsa.PrivateKey
	users    *users
	deps     httpapi.Deps
	log      testenv.Buffer
	auditAt  string
	handler  http.Handler
	server   *httptest.Server

	jobDoor, queueDoor, objectDoor *door
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *fixture) must(err error) {
	w.t.Helper()
	must(w.t, err)
}

func newFixture(t testing.TB, change ...func(*httpapi.Config)) *fixture {
	t.Helper()
	w := newFixtureOn(t, testenv.Redis(t), testenv.ObjectStore(t), change...)
	w.must(w.objects.EnsureBucket(t.Context()))
	return w
}

// newFixtureOn returns a fixture on the given stores. The bucket exists already.
func newFixtureOn(t testing.TB, redisURL string, place testenv.S3, change ...func(*httpapi.Config)) *fixture {
	t.Helper()
	w := &fixture{
		t: t, clock: testenv.NewClock(time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)), redisURL: redisURL, place: place,
		key: tokentest.EC(elliptic.P256()),
	}
	w.users = newUsers(t, w.clock.Now)
	w.issuers = tokentest.ServeKeys(t, tokentest.JWKS(tokentest.JWK("k1", w.key)))
	w.jobDoor, w.queueDoor = openDoor(t, mustURL(t, redisURL).Host), openDoor(t, mustURL(t, redisURL).Host)
	w.objectDoor = openDoor(t, mustURL(t, place.Endpoint).Host)

	var err error
	w.jobs, err = jobstore.Open(w.jobDoor.in(redisURL), w.clock.Now)
	w.must(err)
	tasks, err := queue.Open(w.queueDoor.in(redisURL))
	w.must(err)
	w.objects, err = objects.Open(objects.Config{
		Endpoint: w.objectDoor.in(place.Endpoint), AccessKey: place.AccessKey, SecretKey: place.SecretKey,
		Bucket: place.Bucket,
	})
	w.must(err)
	tokens, err := token.NewVerifier(token.Config{
		Issuers: []token.Issuer{
			{Name: issuerOne, Audiences: []string{audience}, JWKSURL: w.issuers.URL},
			{Name: issuerTwo, Audiences: []string{audience}, JWKSURL: w.issuers.URL},
		},
		Now: w.clock.Now,
	})
	w.must(err)
	w.auditAt = filepath.Join(t.TempDir(), "audit.ndjson")
	events, err := audit.Open(audit.Config{Path: w.auditAt, Process: "api", Now: w.clock.Now})
	w.must(err)
	keys, err := w.jobs.SigningKeys()
	w.must(err)
	w.must(keys.Refresh(t.Context()))
	w.deps = httpapi.Deps{
		Jobs: w.jobs, Queue: tasks, Objects: w.objects, Tokens: tokens, Groups: w.users, Access: w.users.Access, Keys: keys,
		Audit: events, Registry: prometheus.NewRegistry(),
	}
	w.handler, err = httpapi.New(w.config(change...), w.deps)
	w.must(err)
	w.server = httptest.NewServer(w.handler)
	t.Cleanup(func() {
		w.server.Close()
		tokens.Close()
		w.objects.Close()
		w.must(errors.Join(events.Close(), tasks.Close(), w.jobs.Close()))
	})
	return w
}

// config returns the configuration of the API. Its limits are too high to affect other tests.
func (w *fixture) config(change ...func(*httpapi.Config)) httpapi.Config {
	cfg := httpapi.Config{
		BaseURL: mustURL(w.t, base), Dialect: httpapi.DialectAuto, Now: w.clock.Now,
		Logger: slog.New(slog.NewJSONHandler(&w.log, nil)),
		Limits: httpapi.Limits{PollLimit: 10, JobLimit: 1000, Repeat: "new", KickOffLimit: 1e6, StatusLimit: 1e6, DownloadLimit: 100,
			FinishedLimit: 1e6, StoredLimit: 1 << 50},
	}
	for _, apply := range change {
		apply(&cfg)
	}
	return cfg
}

// bodyKey is in place of the name of a header, and its value is the body of the request.
const bodyKey = "the body"

// reply is a complete response.
type reply struct {
	code   int
	header http.Header
	body   string
}

// ask sends a request and reads the whole response. A cut response fails the test.
func (w *fixture) ask(method, target string, headers ...string) reply {
	w.t.Helper()
	got, err := w.try(method, target, headers...)
	if err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
	return got
}

// try is ask for responses that may be cut.
func (w *fixture) try(method, target string, headers ...string) (reply, error) {
	w.t.Helper()
	response, err := w.open(method, target, headers...)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return reply{code: response.StatusCode, header: response.Header, body: string(body)}, err
}

// open sends a request to the test server.
func (w *fixture) open(method, target string, headers ...string) (*http.Response, error) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+target, nil)
	w.must(err)
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Host":
			request.Host = headers[i+1]
			continue
		case bodyKey:
			request.Body = io.NopCloser(strings.NewReader(headers[i+1])) // of unknown length
			continue
		}
		request.Header.Add(headers[i], headers[i+1])
	}
	// The transport must not ask for gzip by itself.
	client := http.Client{
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client.Do(request)
}

// serve calls the handler without a network, so that the log line is written when it returns.
func (w *fixture) serve(method, target string, headers ...string) reply {
	w.t.Helper()
	request := httptest.NewRequestWithContext(w.t.Context(), method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	return w.answer(request)
}

func (w *fixture) answer(request *http.Request) reply {
	recorder := httptest.NewRecorder()
	w.handler.ServeHTTP(recorder, request)
	return reply{code: recorder.Code, header: recorder.Header(), body: recorder.Body.String()}
}

// metrics returns /metrics of the private listener.
func (w *fixture) metrics() string {
	w.t.Helper()
	recorder := httptest.NewRecorder()
	httpapi.Private(w.deps).ServeHTTP(recorder, httptest.NewRequestWithContext(w.t.Context(), "GET", "/metrics", nil))
	if recorder.Code != http.StatusOK {
		w.t.Errorf("metrics: %d", recorder.Code)
	}
	return recorder.Body.String()
}

// as returns the headers of a user of the first issuer whose token has the scopes, by default system/*.read.
func (w *fixture) as(subject string, scopes ...string) []string {
	return w.of(issuerOne, subject, scopes...)
}

// of returns the headers of a user of the issuer.
func (w *fixture) of(issuer, subject string, scopes ...string) []string {
	genuine := w.genuine(issuer, subject)
	if scopes != nil {
		genuine.Claims["scope"] = strings.Join(scopes, " ")
	}
	return []string{"Authorization", "Bearer " + genuine.Token()}
}

// genuine returns a valid token.
func (w *fixture) genuine(issuer, subject string) tokentest.Genuine {
	now := w.clock.Now()
	return tokentest.Genuine{
		Alg: "ES256", KID: "k1", Key: w.key, Now: now, Claims: tokentest.Members{
			"iss": issuer, "sub": subject, "aud": audience, "iat": now.Unix(), "nbf": now.Unix(),
			"exp": now.Add(5 * time.Minute).Unix(), "scope": "system/*.read",
		},
	}
}

// kickoff starts an export of the group as the user and returns its id.
func (w *fixture) kickoff(user []string, query string, headers ...string) export.JobID {
	w.t.Helper()
	return w.started(w.ask("GET", groupExport+query, append(slices.Clone(user), headers...)...))
}

// started returns the job id in the response to a kick-off.
func (w *fixture) started(got reply) export.JobID {
	w.t.Helper()
	id, found := strings.CutPrefix(got.header.Get("Content-Location"), base+"/exports/")
	if got.code != http.StatusAccepted || !found {
		w.t.Fatalf("kick-off: %d %s, Content-Location %q", got.code, got.body, got.header.Get("Content-Location"))
	}
	return export.JobID(id)
}

// job is the record of a job.
func (w *fixture) job(id export.JobID) export.Job {
	w.t.Helper()
	job, err := w.jobs.Job(w.t.Context(), id)
	w.must(err)
	return job
}

// fail ends a job like a worker that cannot produce any file.
func (w *fixture) fail(id export.JobID, reason string) {
	w.t.Helper()
	now := w.clock.Now()
	w.must(w.jobs.FailJob(w.t.Context(), id, reason, now, now.Add(retention)))
}

// redis returns a client of the server, not through a door.
func (w *fixture) redis() *redis.Client {
	w.t.Helper()
	options, err := redis.ParseURL(w.redisURL)
	w.must(err)
	client := redis.NewClient(options)
	w.t.Cleanup(func() { w.must(client.Close()) })
	return client
}

// content is one file to write.
type content struct {
	typ   string
	lines []string
	error bool
}

func (c content) plain() string { return strings.Join(c.lines, "\n") + "\n" }

// report returns an error file.
func report() content {
	return content{typ: "OperationOutcome", error: true, lines: []string{`{"resourceType":"OperationOutcome"}`}}
}

// claim claims an issued unit of the job.
func (w *fixture) claim(id export.JobID, unit export.UnitID, kind export.Kind) export.Lease {
	w.t.Helper()
	if unit != export.PlanUnit {
		_, err := w.jobs.Issue(w.t.Context(), id, 100)
		w.must(err)
	}
	lease, err := w.jobs.Claim(w.t.Context(), id, unit, kind, 1, "")
	w.must(err)
	return lease
}

// commit closes a unit with its files.
func (w *fixture) commit(lease export.Lease, files ...export.File) {
	w.t.Helper()
	w.must(w.jobs.Commit(w.t.Context(), lease, jobstore.Commit{
		Result: export.Result{Files: files}, Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
}

// plan runs the plan as a worker does: it cuts one unit per type.
func (w *fixture) plan(id export.JobID, types ...string) {
	w.t.Helper()
	lease := w.claim(id, export.PlanUnit, export.KindPlan)
	units := make([]export.Unit, 0, len(types))
	for _, typ := range types {
		units = append(units, export.Unit{
			ID: export.UnitID(typ + "-00000"), Kind: export.KindExport, Type: typ, Bytes: 1000,
		})
	}
	w.must(w.jobs.Stage(w.t.Context(), lease, units))
	w.must(w.jobs.Commit(w.t.Context(), lease, jobstore.Commit{
		Plan: &jobstore.Plan{Snapshot: w.clock.Now().Add(-90 * time.Second)},
		Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
}

// run does the work of a worker for a job: it plans, writes the files and seals. It returns the recorded files.
func (w *fixture) run(id export.JobID, contents ...content) []export.File {
	w.t.Helper()
	var types []string
	for _, c := range contents {
		types = append(types, c.typ)
	}
	w.plan(id, types...)
	var files []export.File
	for _, c := range contents {
		unit := export.UnitID(c.typ + "-00000")
		files = append(files, w.write(id, unit, c))
		w.commit(w.claim(id, unit, export.KindExport), files[len(files)-1])
	}
	var list bytes.Buffer
	encoder := json.NewEncoder(&list)
	for _, file := range files {
		w.must(encoder.Encode(file))
	}
	w.seal(id, list.Bytes())
	return files
}

// seal completes a job with a list of files.
func (w *fixture) seal(id export.JobID, list []byte) {
	w.t.Helper()
	lease := w.claim(id, export.SealUnit, export.KindSeal)
	key := export.ManifestKey(id, lease.Fence)
	stored := w.put(key, list)
	now := w.clock.Now()
	w.must(w.jobs.Commit(w.t.Context(), lease, jobstore.Commit{
		Seal: &jobstore.Seal{Manifest: key, Digest: stored.SHA256, Finished: now, Expires: now.Add(retention)},
	}))
}

// write stores a file as the worker does, or several parts as earlier versions did, each as a gzip member of its own.
func (w *fixture) write(id export.JobID, unit export.UnitID, parts ...content) export.File {
	w.t.Helper()
	var packed bytes.Buffer
	c := parts[0]
	file := export.File{Name: export.FileName(unit, 1, c.typ, 0), Type: c.typ, Error: c.error}
	for _, part := range parts {
		var blocks gzipblocks.Writer
		w.must(blocks.Reset(&packed))
		zip := io.WriteCloser(&blocks)
		if len(parts) > 1 {
			zip = gzip.NewWriter(&packed)
		}
		_, err := io.WriteString(zip, part.plain())
		w.must(errors.Join(err, zip.Close()))
		file.Blocks = blocks.Index()
		file.Count += int64(len(part.lines))
		file.Bytes += int64(len(part.plain()))
	}
	stored := w.put(export.FileKey(id, c.typ, file.Name), packed.Bytes())
	file.Key, file.Stored, file.SHA256 = stored.Key, stored.Size, stored.SHA256
	return file
}

func (w *fixture) put(key string, data []byte) objects.Stored {
	w.t.Helper()
	writer := w.objects.Create(w.t.Context(), key, "application/octet-stream")
	_, err := writer.Write(data)
	w.must(err)
	stored, err := writer.Commit()
	w.must(err)
	return stored
}

// patients is a file of n Patient lines.
func patients(n int) content {
	c := content{typ: "Patient"}
	for i := range n {
		c.lines = append(c.lines, fmt.Sprintf(`{"resourceType":"Patient","id":"made-up-%d"}`, i))
	}
	return c
}

// users is the directory of groups and grants, on files in a folder.
type users struct {
	*filedir.Groups
	Access  *filedir.Access
	dir     string
	exists  func(group string) error // when set, decides instead of the files
	unknown func() error             // when set, its error is that of Unknown
}

// The owners: alice and bob may export everything, carol three types of the group g2, and erin the patients p1 and p4 at the
// patient level. The server holds p1 to p4; p1 to p3 are members of g1.
const (
	groupLines = `{"resourceType":"Group","id":"g1","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/p1"}},` +
		`{"entity":{"reference":"Patient/p2"}},{"entity":{"reference":"Patient/p3"}}]}
{"resourceType":"Group","id":"g2","type":"person","actual":true}
`
	everything = `
- {issuer: "https://%s.example.org", subject: %s, types: all, groups: all, patients: all, levels: [group, patient, system]}`
	threeTypes = `
- issuer: https://one.example.org
  subject: carol
  types: [Patient, Condition, Organization]
  groups: [g2]
  patients: all
- {issuer: "https://one.example.org", subject: erin, types: all, groups: all, patients: {only: [p1, p4]}, levels: [patient]}
`
)

func newUsers(t testing.TB, now func() time.Time) *users {
	t.Helper()
	dir := t.TempDir()
	access := filepath.Join(dir, "access.yaml")
	grants := fmt.Sprintf(everything+everything+everything, "one", "alice", "two", "alice", "one", "bob") + threeTypes
	must(t, errors.Join(os.WriteFile(filepath.Join(dir, "Group.ndjson"), []byte(groupLines), 0o600),
		os.WriteFile(access, []byte(grants), 0o600)))
	f := &users{dir: dir}
	var err error
	f.Groups, err = filedir.OpenGroups(t.Context(), dir, nil, now, slog.New(slog.DiscardHandler))
	must(t, err)
	f.Groups.Held = func(_ context.Context, meet func(string) error) error {
		for _, id := range []string{"p1", "p2", "p3", "p4"} {
			if err := meet(id); err != nil {
				return err
			}
		}
		return nil
	}
	f.Access, err = filedir.OpenAccess(access)
	must(t, err)
	return f
}

func (f *users) Exists(ctx context.Context, group string) error {
	if f.exists != nil {
		return f.exists(group)
	}
	return f.Groups.Exists(ctx, group)
}

func (f *users) Unknown(ctx context.Context, group string, patients []string) ([]string, error) {
	if f.unknown != nil {
		return nil, f.unknown()
	}
	return f.Groups.Unknown(ctx, group, patients)
}

// Members must not be called: an API that reads members does the work of the plan in the kick-off (pitfall 12).
func (f *users) Members(context.Context, string, func(string) error) ([]export.LeftOut, error) {
	panic("the API reads members")
}

// door is a TCP proxy that can be shut and whose traffic can be watched.
type door struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu      sync.Mutex
	shut    bool
	conns   map[net.Conn]struct{}
	request func(part []byte)               // is called with data from the client, before it is forwarded
	answer  func(request, part []byte) bool // whether data from the server, after the last request, is forwarded
	lose    int                             // number of answers still to be lost
	heard   []byte                          // from the client since Listen
}

func openDoor(t testing.TB, target string) *door {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	d := &door{listener: listener, target: target, conns: map[net.Conn]struct{}{}}
	d.Open()
	d.running.Go(d.serve)
	t.Cleanup(func() {
		d.Shut()
		must(t, listener.Close())
		d.running.Wait()
	})
	return d
}

// in returns the server's URL with the address of the door.
func (d *door) in(server string) string {
	return strings.Replace(server, d.target, d.listener.Addr().String(), 1)
}

// Shut breaks all connections and refuses new ones.
func (d *door) Shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	for conn := range d.conns {
		conn.Close()
	}
}

// Open forwards everything again.
func (d *door) Open() {
	d.watch(func([]byte) {}, func([]byte, []byte) bool { return true })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut, d.lose = false, 0
}

// watch replaces the functions that are not nil.
func (d *door) watch(request func([]byte), answer func(request, part []byte) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if request != nil {
		d.request = request
	}
	if answer != nil {
		d.answer = answer
	}
}

// ShutAfter forwards so many more bytes from the server, then shuts.
func (d *door) ShutAfter(left int64) {
	d.watch(nil, func(_, part []byte) bool {
		d.mu.Lock()
		left -= int64(len(part))
		more := left >= 0
		d.mu.Unlock()
		if !more {
			d.Shut()
		}
		return more
	})
}

// Count counts the bytes from the server.
func (d *door) Count() *atomic.Int64 {
	var n atomic.Int64
	d.watch(nil, func(_, part []byte) bool {
		n.Add(int64(len(part)))
		return true
	})
	return &n
}

// Lose forwards the next n requests that contain the word, and breaks their connections before the answers are forwarded.
// An answer that a script is not loaded is forwarded.
func (d *door) Lose(word string, n int) {
	d.watch(nil, func(request, part []byte) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.lose == 0 || !bytes.Contains(request, []byte(word)) || bytes.HasPrefix(part, []byte("-NOSCRIPT")) {
			return true
		}
		d.lose--
		return false
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lose = n
}

// Before calls the function once, before the next request that contains the word is forwarded.
func (d *door) Before(word string, call func()) {
	var once sync.Once
	d.watch(func(part []byte) {
		if bytes.Contains(part, []byte(word)) {
			once.Do(call)
		}
	}, nil)
}

// Listen starts a new record of the data from the client.
func (d *door) Listen() {
	d.watch(func(part []byte) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.heard = append(d.heard, part...)
	}, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heard = nil
}

func (d *door) serve() {
	for {
		near, err := d.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", d.target)
		if err != nil {
			near.Close()
			continue
		}
		d.mu.Lock()
		d.conns[near], d.conns[far] = struct{}{}, struct{}{}
		if d.shut {
			near.Close()
			far.Close()
		}
		d.mu.Unlock()
		var last []byte // from the client; guarded by d.mu
		d.running.Go(func() {
			pass(far, near, func(part []byte) bool {
				d.mu.Lock()
				request := d.request
				last = bytes.Clone(part)
				d.mu.Unlock()
				request(part)
				return true
			})
		})
		d.running.Go(func() {
			pass(near, far, func(part []byte) bool {
				d.mu.Lock()
				answer, request := d.answer, last
				d.mu.Unlock()
				return answer(request, part)
			})
		})
	}
}

// pass copies until an error, or until let refuses a part.
func pass(to, from net.Conn, let func(part []byte) bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !let(buffer[:n]) {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func mustURL(t testing.TB, raw string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(raw)
	must(t, err)
	return parsed
}

// wantOutcome checks that a response is an OperationOutcome with one error of the code ("": any), whose text contains each
// of the words.
func wantOutcome(t testing.TB, got reply, status int, code string, words ...string) {
	t.Helper()
	if got.code != status {
		t.Fatalf("status %d, want %d: %s", got.code, status, got.body)
	}
	if kind := got.header.Get("Content-Type"); kind != "application/fhir+json" {
		t.Errorf("Content-Type %q", kind)
	}
	var outcome struct {
		ResourceType string `json:"resourceType"`
		Issue        []struct{ Severity, Code, Diagnostics string }
	}
	if err := json.Unmarshal([]byte(got.body), &outcome); err != nil || outcome.ResourceType != "OperationOutcome" ||
		len(outcome.Issue) != 1 || outcome.Issue[0].Severity != "error" || outcome.Issue[0].Diagnostics == "" ||
		outcome.Issue[0].Code == "" || code != "" && outcome.Issue[0].Code != code {
		t.Fatalf("%s (%v), want one error of code %s", got.body, err, code)
	}
	for _, word := range words {
		if !strings.Contains(outcome.Issue[0].Diagnostics, word) {
			t.Errorf("%q does not contain %q", outcome.Issue[0].Diagnostics, word)
		}
	}
}

func sum(text string) []byte {
	digest := sha256.Sum256([]byte(text))
	return digest[:]
}
