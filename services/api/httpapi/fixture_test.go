package httpapi_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
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
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const (
	base      = "https://fhir.example.org/fhir" // the public base; the test server is somewhere else
	audience  = base
	retention = 168 * time.Hour
)

// clock is the API's and the job store's clock.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fixture is an API on real stores, each behind a door that a test can close.
type fixture struct {
	t        testing.TB
	clock    *clock
	jobs     *jobstore.Store
	queue    *queue.Client
	objects  *objects.Store
	redisURL string
	issuer   *issuer
	users    *users
	deps     httpapi.Deps
	registry *prometheus.Registry
	log      *lockedBuffer
	audit    *audit.Log
	auditAt  string
	handler  http.Handler
	server   *httptest.Server

	jobDoor, queueDoor, objectDoor *door
}

func newFixture(t testing.TB, change ...func(*httpapi.Config)) *fixture {
	t.Helper()
	w := newFixtureOn(t, testenv.Redis(t), testenv.ObjectStore(t), change...)
	if err := w.objects.EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// newFixtureOn is a fixture on stores that the test brings. The bucket is there already.
func newFixtureOn(t testing.TB, redisURL string, place testenv.S3, change ...func(*httpapi.Config)) *fixture {
	t.Helper()
	w := &fixture{
		t: t, clock: &clock{now: time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)}, redisURL: redisURL,
		registry: prometheus.NewRegistry(), log: &lockedBuffer{},
	}
	w.users = newUsers(t, w.clock.Now)
	w.issuer = newIssuer(t, w.clock)
	redis := mustURL(t, w.redisURL)
	w.jobDoor, w.queueDoor = openDoor(t, redis.Host), openDoor(t, redis.Host)
	w.objectDoor = openDoor(t, mustURL(t, place.Endpoint).Host)

	var err error
	if w.jobs, err = jobstore.Open(through(redis, w.jobDoor), w.clock.Now); err != nil {
		t.Fatal(err)
	}
	if w.queue, err = queue.Open(through(redis, w.queueDoor)); err != nil {
		t.Fatal(err)
	}
	w.objects, err = objects.Open(objects.Config{
		Endpoint: "http://" + w.objectDoor.Addr(), AccessKey: place.AccessKey, SecretKey: place.SecretKey,
		Bucket: place.Bucket,
	})
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := token.NewVerifier(token.Config{
		Issuers: []token.Issuer{
			{Name: "https://one.example.org", Audiences: []string{audience}, JWKSURL: w.issuer.jwks.URL},
			{Name: "https://two.example.org", Audiences: []string{audience}, JWKSURL: w.issuer.jwks.URL},
		},
		Now: w.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := httpapi.Config{
		BaseURL: mustURL(t, base), Now: w.clock.Now, Logger: slog.New(slog.NewJSONHandler(w.log, nil)),
		Limits: httpapi.Limits{Jobs: 1000, KickOffs: 1e6, Statuses: 1e6}, // out of the way of tests of other things
	}
	for _, apply := range change {
		apply(&cfg)
	}
	w.deps = httpapi.Deps{
		Jobs: w.jobs, Queue: w.queue, Objects: w.objects, Tokens: tokens, Groups: w.users, Access: w.users.Access,
		Registry: w.registry,
	}
	w.auditAt = filepath.Join(t.TempDir(), "audit.ndjson")
	if w.audit, err = audit.Open(audit.Config{Path: w.auditAt, Process: "api", Now: w.clock.Now}); err != nil {
		t.Fatal(err)
	}
	w.deps.Audit = w.audit
	w.handler, err = httpapi.New(cfg, w.deps)
	if err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewServer(w.handler)
	t.Cleanup(func() {
		w.server.Close()
		tokens.Close()
		if err := w.audit.Close(); err != nil {
			t.Errorf("closing the audit log: %v", err)
		}
		w.objects.Close()
		if err := w.queue.Close(); err != nil {
			t.Errorf("closing the queue: %v", err)
		}
		if err := w.jobs.Close(); err != nil {
			t.Errorf("closing the job store: %v", err)
		}
	})
	return w
}

// reply is a whole answer.
type reply struct {
	code   int
	header http.Header
	body   string
}

// ask sends a request as it is and reads the whole answer. It fails the test when the answer is cut.
func (w *fixture) ask(method, target string, headers ...string) reply {
	w.t.Helper()
	got, err := w.try(method, target, headers...)
	if err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
	return got
}

// try is ask for answers that may be cut.
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

// open sends a request to the test server. A target on the public base is sent there too, with the public Host.
func (w *fixture) open(method, target string, headers ...string) (*http.Response, error) {
	w.t.Helper()
	target = strings.TrimPrefix(target, "https://fhir.example.org")
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+target, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
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

// serve answers without a network, so that the log line is written when it returns.
func (w *fixture) serve(method, target string, headers ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	request := httptest.NewRequestWithContext(w.t.Context(), method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	recorder := httptest.NewRecorder()
	w.handler.ServeHTTP(recorder, request)
	return recorder
}

// metrics are what operators read on the private listener.
func (w *fixture) metrics() string {
	w.t.Helper()
	recorder := httptest.NewRecorder()
	httpapi.Private(w.deps).ServeHTTP(recorder, httptest.NewRequestWithContext(w.t.Context(), "GET", "/metrics", nil))
	if recorder.Code != http.StatusOK {
		w.t.Errorf("metrics: %d", recorder.Code)
	}
	return recorder.Body.String()
}

// as makes the headers of a user of the first issuer whose token has the scopes, system/*.read unless given.
func (w *fixture) as(subject string, scopes ...string) []string {
	w.t.Helper()
	return []string{"Authorization", "Bearer " + w.issuer.token(w.t, "https://one.example.org", subject, scopes...)}
}

// kickoff starts an export of the group as the user and returns its id.
func (w *fixture) kickoff(user []string, query string, headers ...string) export.JobID {
	w.t.Helper()
	got := w.ask("GET", "/fhir/Group/g1/$export"+query, append(slices.Clone(user), headers...)...)
	if got.code != http.StatusAccepted {
		w.t.Fatalf("kick-off: %d %s", got.code, got.body)
	}
	id, found := strings.CutPrefix(got.header.Get("Content-Location"), base+"/exports/")
	if !found {
		w.t.Fatalf("Content-Location %q", got.header.Get("Content-Location"))
	}
	return export.JobID(id)
}

// content is one file to be produced.
type content struct {
	typ   string
	lines []string
	error bool
}

func (c content) plain() string { return strings.Join(c.lines, "\n") + "\n" }

// claim takes a unit of the job that the store has issued, the plan or another.
func (w *fixture) claim(id export.JobID, unit export.UnitID, kind export.Kind) export.Lease {
	w.t.Helper()
	if unit != export.PlanUnit {
		if _, err := w.jobs.Issue(w.t.Context(), id, 100); err != nil {
			w.t.Fatal(err)
		}
	}
	lease, err := w.jobs.Claim(w.t.Context(), id, unit, kind, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	return lease
}

func (w *fixture) commit(lease export.Lease, c jobstore.Commit) {
	w.t.Helper()
	if err := w.jobs.Commit(w.t.Context(), lease, c); err != nil {
		w.t.Fatal(err)
	}
}

// plan plays the worker's first unit: one unit a type follows.
func (w *fixture) plan(id export.JobID, types ...string) {
	w.t.Helper()
	lease := w.claim(id, export.PlanUnit, export.KindPlan)
	units := make([]export.Unit, 0, len(types))
	for _, typ := range types {
		units = append(units, export.Unit{
			ID: export.UnitID(typ + "-00000"), Kind: export.KindExport, Type: typ, Bytes: 1000,
		})
	}
	if err := w.jobs.Stage(w.t.Context(), lease, units); err != nil {
		w.t.Fatal(err)
	}
	w.commit(lease, jobstore.Commit{
		Plan: &jobstore.Plan{Snapshot: w.clock.Now().Add(-90 * time.Second)},
		Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	})
}

// run plays the worker for a job: plans, writes the files, seals. It returns the files as they are recorded.
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
		lease := w.claim(id, unit, export.KindExport)
		file := w.write(id, unit, c)
		files = append(files, file)
		w.commit(lease, jobstore.Commit{
			Result: export.Result{Files: []export.File{file}}, Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
		})
	}
	lease := w.claim(id, export.SealUnit, export.KindSeal)
	var list bytes.Buffer
	encoder := json.NewEncoder(&list)
	for _, file := range files {
		if err := encoder.Encode(file); err != nil {
			w.t.Fatal(err)
		}
	}
	key := export.ManifestKey(id, lease.Fence)
	w.put(key, list.Bytes())
	now := w.clock.Now()
	w.commit(lease, jobstore.Commit{Seal: &jobstore.Seal{Manifest: key, Finished: now, Expires: now.Add(retention)}})
	return files
}

func (w *fixture) write(id export.JobID, unit export.UnitID, c content) export.File {
	w.t.Helper()
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write([]byte(c.plain())); err != nil {
		w.t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		w.t.Fatal(err)
	}
	name := export.FileName(unit, 1, c.typ, 0)
	key := export.FileKey(id, c.typ, name)
	stored := w.put(key, packed.Bytes())
	return export.File{
		Name: name, Type: c.typ, Error: c.error, Key: key, Count: int64(len(c.lines)), Bytes: int64(len(c.plain())),
		Stored: stored.Size, SHA256: stored.SHA256,
	}
}

func (w *fixture) put(key string, data []byte) objects.Stored {
	w.t.Helper()
	writer := w.objects.Create(w.t.Context(), key, "application/octet-stream")
	if _, err := writer.Write(data); err != nil {
		w.t.Fatal(err)
	}
	stored, err := writer.Commit()
	if err != nil {
		w.t.Fatal(err)
	}
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

// users is the group directory and the access directory, on files of its folder.
type users struct {
	*filedir.Groups
	Access *filedir.Access
	dir    string
	exists func(group string) error // when set, decides instead of the files
}

// The owners: alice and bob may export everything, carol three types of the group g2.
const (
	groupLines = `{"resourceType":"Group","id":"g1","type":"person","actual":true}
{"resourceType":"Group","id":"g2","type":"person","actual":true}
`
	accessFile = `- issuer: https://one.example.org
  subject: alice
  types: all
  groups: all
  patients: all
- issuer: https://two.example.org
  subject: alice
  types: all
  groups: all
  patients: all
- issuer: https://one.example.org
  subject: bob
  types: all
  groups: all
  patients: all
- issuer: https://one.example.org
  subject: carol
  types: [Patient, Condition, Organization]
  groups: [g2]
  patients: all
`
)

func newUsers(t testing.TB, now func() time.Time) *users {
	t.Helper()
	dir := t.TempDir()
	access := filepath.Join(dir, "access.yaml")
	err := errors.Join(os.WriteFile(filepath.Join(dir, "Group.ndjson"), []byte(groupLines), 0o600),
		os.WriteFile(access, []byte(accessFile), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	f := &users{dir: dir}
	if f.Groups, err = filedir.OpenGroups(dir, now); err != nil {
		t.Fatal(err)
	}
	if f.Access, err = filedir.OpenAccess(access); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *users) Exists(ctx context.Context, group string) error {
	if f.exists != nil {
		return f.exists(group)
	}
	return f.Groups.Exists(ctx, group)
}

// Members is work for a worker: an API that reads members does a kick-off's work inline (pitfall 12).
func (f *users) Members(context.Context, string, func(string) error) error {
	panic("the API reads members")
}

// issuer signs tokens and publishes its key.
type issuer struct {
	key   *rsa.PrivateKey
	clock *clock
	jwks  *httptest.Server
	mu    sync.Mutex
	down  bool
}

func newIssuer(t testing.TB, c *clock) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key, clock: c}
	i.jwks = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.down {
			http.Error(w, "down", http.StatusInternalServerError)
			return
		}
		exponent := big.NewInt(int64(key.E)).Bytes()
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","kid":"k1","alg":"RS384","use":"sig","n":%q,"e":%q}]}`,
			base64.RawURLEncoding.EncodeToString(key.N.Bytes()), base64.RawURLEncoding.EncodeToString(exponent))
	}))
	t.Cleanup(i.jwks.Close)
	return i
}

func (i *issuer) token(t testing.TB, name, subject string, scopes ...string) string {
	t.Helper()
	if scopes == nil {
		scopes = []string{"system/*.read"}
	}
	now := i.clock.Now()
	return i.sign(t, map[string]any{"alg": "RS384", "typ": "JWT", "kid": "k1"}, map[string]any{
		"iss": name, "sub": subject, "aud": audience, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"scope": strings.Join(scopes, " "),
	})
}

func (i *issuer) sign(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	var deps []string
	for _, part := range []map[string]any{header, claims} {
		encoded, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		deps = append(deps, base64.RawURLEncoding.EncodeToString(encoded))
	}
	signed := strings.Join(deps, ".")
	digest := crypto.SHA384.New()
	digest.Write([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA384, digest.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// door is a TCP proxy that can be shut, at once or after so many bytes from the far side.
type door struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu    sync.Mutex
	shut  bool
	left  int64 // bytes still let through when limit is set
	limit bool
	first func() // called once, before the next bytes from the near side that hold when go through
	when  string
	word  string // of the requests whose answers are lost
	lose  int    // how many answers are lost yet
	tap   bool   // what goes through from the near side is written down
	heard []byte
	conns map[net.Conn]struct{}
}

func openDoor(t testing.TB, target string) *door {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{listener: listener, target: target, conns: map[net.Conn]struct{}{}}
	d.running.Go(d.serve)
	t.Cleanup(func() {
		d.Shut()
		if err := listener.Close(); err != nil {
			t.Errorf("closing a door: %v", err)
		}
		d.running.Wait()
	})
	return d
}

func (d *door) Addr() string { return d.listener.Addr().String() }

// Shut breaks all connections and refuses new ones.
func (d *door) Shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	for conn := range d.conns {
		conn.Close()
	}
}

// ShutAfter lets so many more bytes through from the far side, then shuts.
func (d *door) ShutAfter(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit, d.left = true, n
}

// Open lets everything through again.
func (d *door) Open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut, d.limit, d.lose = false, false, 0
}

// Lose lets the next n requests that hold the word through, and breaks their connections before their answers pass. An
// answer that only says that a script is not loaded yet passes.
func (d *door) Lose(word string, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.word, d.lose = word, n
}

// lost reports whether the answer to the request is to be lost.
func (d *door) lost(request, answer []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lose == 0 || !bytes.Contains(request, []byte(d.word)) || bytes.HasPrefix(answer, []byte("-NOSCRIPT")) {
		return false
	}
	d.lose--
	return true
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
		if !d.keep(near, far) {
			near.Close()
			far.Close()
			continue
		}
		var request atomic.Value // the last bytes from the near side
		request.Store([]byte(nil))
		d.running.Go(func() {
			d.pass(far, near, func(part []byte) bool {
				d.hear(part)
				d.callFirst(part)
				request.Store(bytes.Clone(part))
				return true
			})
		})
		d.running.Go(func() {
			d.pass(near, far, func(part []byte) bool {
				if !d.spend(int64(len(part))) {
					d.Shut()
					return false
				}
				return !d.lost(request.Load().([]byte), part)
			})
		})
	}
}

func (d *door) keep(conns ...net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return false
	}
	for _, conn := range conns {
		d.conns[conn] = struct{}{}
	}
	return true
}

// pass copies as long as nothing breaks and let agrees to each part.
func (d *door) pass(to, from net.Conn, let func(part []byte) bool) {
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

// First has the function called before the next request goes through.
func (d *door) First(call func()) { d.Before("", call) }

// Before has the function called before the next request that holds the word goes through.
func (d *door) Before(word string, call func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first, d.when = call, word
}

func (d *door) callFirst(request []byte) {
	d.mu.Lock()
	call := d.first
	if !bytes.Contains(request, []byte(d.when)) {
		call = nil
	}
	if call != nil {
		d.first = nil
	}
	d.mu.Unlock()
	if call != nil {
		call()
	}
}

func (d *door) spend(n int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left -= n
	return !d.limit || d.left >= 0
}

func through(server *url.URL, d *door) string {
	moved := *server
	moved.Host = d.Addr()
	return moved.String()
}

func mustURL(t testing.TB, raw string) *url.URL {
	t.Helper()
	parsed, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// lockedBuffer is the log.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// wantOutcome checks that an answer is an OperationOutcome with one error of the code, and says each of the words.
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
	if err := json.Unmarshal([]byte(got.body), &outcome); err != nil {
		t.Fatalf("%v: %s", err, got.body)
	}
	if outcome.ResourceType != "OperationOutcome" || len(outcome.Issue) != 1 || outcome.Issue[0].Severity != "error" ||
		outcome.Issue[0].Code != code {
		t.Fatalf("%s, want one error of code %s", got.body, code)
	}
	for _, word := range words {
		if !strings.Contains(outcome.Issue[0].Diagnostics, word) {
			t.Errorf("%q does not say %q", outcome.Issue[0].Diagnostics, word)
		}
	}
}

func sum(text string) []byte {
	digest := sha256.Sum256([]byte(text))
	return digest[:]
}

// commitEmpty closes a unit that found nothing.
func commitEmpty() jobstore.Commit {
	return jobstore.Commit{Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal}}
}

func commitSeal(manifest string, now time.Time) jobstore.Commit {
	return jobstore.Commit{Seal: &jobstore.Seal{Manifest: manifest, Finished: now, Expires: now.Add(retention)}}
}
