package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token/development"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/process"
)

// shared is a folder for all tests: services, which are built once, and generated populations. binaries is the folder of
// the services.
var shared, binaries string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	shared, binaries = dir, filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-o", binaries+"/", "../api", "../auth", "../worker", "../scheduler", "../standalone", "../sluice")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the services: %w\n%s", err, out)
	}
	// Tests mostly wait for other processes, so more of them run at once than there are processors.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// publicBase is the base URL for clients; the test's client maps it to the address of the API. URLs that start with it are
// not derived from the request.
const publicBase = "https://bulk.example.org/fhir"

// stack is one deployment: an API, workers and a scheduler.
type stack struct {
	t         *testing.T
	redis     string
	s3        testenv.S3
	env       []string
	issuer    *development.Issuer
	processes []*service
	api       *service
	apiEnv    []string
	client    *http.Client
}

type setup struct {
	data      string // folder of NDJSON
	database  string // URL of a store that is filled; then workers do not read data
	directory string // URL of a store with the groups and the imported grants. Then no process reads them from files
	groups    string // folder of Group files
	access    string // YAML
	workers   int
	endpoint  string      // S3 endpoint if not the server itself, such as a proxy
	redis     *redisProxy // between the services and Redis
	api       []string    // more settings of the API
	worker    []string    // more settings of the workers
	scheduler []string    // more settings of the scheduler
}

// openAccess grants everything to the subjects "everything" and "other".
const openAccess = `
- {issuer: "urn:sluice:development", subject: everything, types: all, groups: all, patients: all}
- {issuer: "urn:sluice:development", subject: other, types: all, groups: all, patients: all}
`

func deploy(t *testing.T, with setup) *stack {
	t.Helper()
	s := &stack{t: t, redis: testenv.Redis(t), s3: testenv.ObjectStore(t)}
	dir := t.TempDir()
	issuer, err := development.Open(filepath.Join(dir, "issuer"))
	check.Must(t, err)
	s.issuer = issuer
	issuers := filepath.Join(dir, "issuers.yaml")
	check.Must(t, os.WriteFile(issuers, fmt.Appendf(nil, "issuers:\n- name: %q\n  audiences: [%q]\n  jwks_file: %q\n",
		development.IssuerName, publicBase, issuer.JWKSFile()), 0o600))
	if with.access == "" {
		with.access = openAccess
	}
	access := filepath.Join(dir, "access.yaml")
	check.Must(t, os.WriteFile(access, []byte(with.access), 0o600))
	if with.groups == "" {
		with.groups = with.data
	}
	if with.endpoint == "" {
		with.endpoint = s.s3.Endpoint
	}
	redis := s.redis
	if with.redis != nil {
		redis = with.redis.between(t, s.redis)
	}
	common := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"SLUICE_LOG_LEVEL=debug",
		"SLUICE_REDIS_URL=" + redis,
		"SLUICE_S3_ENDPOINT=" + with.endpoint,
		"SLUICE_S3_ACCESS_KEY=" + s.s3.AccessKey,
		"SLUICE_S3_SECRET_KEY=" + s.s3.SecretKey,
		"SLUICE_S3_BUCKET=" + s.s3.Bucket,
	}
	source := "SLUICE_SOURCE_DIR=" + with.data
	if with.database != "" {
		source = "SLUICE_SOURCE_URL=" + with.database
	}
	directory := []string{"SLUICE_GROUPS_DIR=" + with.groups, "SLUICE_ACCESS_FILE=" + access}
	if with.directory != "" {
		sluice(t, 0, "admin", "grant", "import", "--database", with.directory, "--yes",
			"--audit-log", filepath.Join(t.TempDir(), "audit.ndjson"), access)
		directory = []string{"SLUICE_DIRECTORY_URL=" + with.directory}
	}
	s.env = slices.Concat(common, with.worker, directory, []string{source})
	s.apiEnv = slices.Concat(common, directory, []string{
		"SLUICE_API_ADDR=127.0.0.1:0", "SLUICE_JOB_LIMIT=100", "SLUICE_STATUS_LIMIT=4000", "SLUICE_BASE_URL=" + publicBase,
		"SLUICE_TOKEN_ISSUERS_FILE=" + issuers,
	}, with.api)
	s.api = s.start("api", s.apiEnv...)
	s.start("scheduler", slices.Concat(common, with.scheduler)...)
	for range with.workers {
		s.startWorker()
	}
	s.useAPI()
	return s
}

// useAPI waits for the API and sends requests to its address.
func (s *stack) useAPI() {
	s.t.Helper()
	s.client = &http.Client{Transport: mapped{
		to: s.api.ready()["public"], inner: &http.Transport{DisableCompression: true},
	}}
	s.waitReady()
}

// restartAPI replaces a stopped API.
func (s *stack) restartAPI() {
	s.t.Helper()
	s.api = s.start("api", s.apiEnv...)
	s.useAPI()
}

func (s *stack) startWorker(more ...string) *service {
	return s.start("worker", append(slices.Clone(s.env), more...)...)
}

// waitReady waits until the API is ready.
func (s *stack) waitReady() {
	s.t.Helper()
	check.Eventually(s.t, 30*time.Second, "the API is ready", func() bool {
		resp, err := s.client.Get("https://bulk.example.org/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// mapped sends requests for the public base to the address of the API.
type mapped struct {
	to    string
	inner http.RoundTripper
}

func (m mapped) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", m.to
	return m.inner.RoundTrip(r)
}

// service is a running service that the test owns.
type service struct {
	*process.Process
	t *testing.T
}

func (s *stack) start(name string, env ...string) *service {
	s.t.Helper()
	return s.startProgram(filepath.Join(binaries, name), env...)
}

// startProgram starts a service, possibly of another version. It is stopped when the test ends.
func (s *stack) startProgram(path string, env ...string) *service {
	s.t.Helper()
	started, err := process.Start(path, env)
	check.Must(s.t, err)
	p := &service{Process: started, t: s.t}
	s.t.Cleanup(func() {
		p.stop()
		if s.t.Failed() {
			s.t.Logf("%s logged:\n%s", p.Name(), p.Problems())
		}
	})
	s.processes = append(s.processes, p)
	return p
}

// ready waits for the log line of a service that listens, and returns its addresses.
func (p *service) ready() map[string]string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	found, err := p.Ready(ctx)
	check.Must(p.t, err)
	return found
}

// stop sends SIGTERM and waits, a little longer than the drain.
func (p *service) stop() {
	if err := p.Stop(40 * time.Second); err != nil {
		p.t.Error(err)
	}
}

func (s *stack) token(subject, scope string) string {
	s.t.Helper()
	signed, err := s.issuer.Sign(subject, scope, publicBase, time.Hour, time.Now())
	check.Must(s.t, err)
	return signed
}

// request sends one request with a token of the subject for everything.
func (s *stack) request(method, url, subject string, header http.Header) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, nil)
	check.Must(s.t, err)
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Authorization", "Bearer "+s.token(subject, "system/*.rs"))
	resp, err := s.client.Do(req)
	check.Must(s.t, err)
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// manifest is the body of a finished job's status.
type manifest struct {
	TransactionTime     string     `json:"transactionTime"`
	Request             string     `json:"request"`
	RequiresAccessToken bool       `json:"requiresAccessToken"`
	Output              []fileItem `json:"output"`
	Deleted             []fileItem `json:"deleted"`
	Error               []fileItem `json:"error"`
}

type fileItem struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Count int    `json:"count"`
}

func (s *stack) kickoff(group, query string) (status string) {
	s.t.Helper()
	resp := s.request(http.MethodGet, publicBase+"/Group/"+group+"/$export"+query, "everything", nil)
	if resp.StatusCode != http.StatusAccepted {
		body, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("kick-off: %s %s", resp.Status, body)
	}
	status = resp.Header.Get("Content-Location")
	if !strings.HasPrefix(status, publicBase+"/") {
		s.t.Fatalf("status URL %q is not below the public base", status)
	}
	return status
}

// wait polls until the export is finished and returns the manifest.
func (s *stack) wait(status string, most time.Duration) manifest {
	s.t.Helper()
	var m manifest
	check.Eventually(s.t, most, "the export finishes", func() (finished bool) {
		m, finished = s.poll(status)
		return finished
	})
	return m
}

// poll requests the status once and returns the manifest if the export is finished.
func (s *stack) poll(status string) (m manifest, finished bool) {
	s.t.Helper()
	resp := s.request(http.MethodGet, status, "everything", nil)
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		check.Must(s.t, json.NewDecoder(resp.Body).Decode(&m))
		return m, true
	case http.StatusAccepted, http.StatusTooManyRequests:
	default:
		body, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("status: %s %s", resp.Status, body)
	}
	return manifest{}, false
}

// lines is linesFor the subject "everything".
func (s *stack) lines(items []fileItem) map[string][]string {
	s.t.Helper()
	return s.linesFor("everything", items)
}

// linesFor downloads the files and returns their lines by resource type. It checks the count of each file.
func (s *stack) linesFor(subject string, items []fileItem) map[string][]string {
	s.t.Helper()
	byType := map[string][]string{}
	for _, item := range items {
		resp := s.request(http.MethodGet, item.URL, subject, nil)
		if resp.StatusCode != http.StatusOK {
			s.t.Fatalf("file: %s", resp.Status)
		}
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 16<<20)
		count := 0
		for lines.Scan() {
			byType[item.Type] = append(byType[item.Type], lines.Text())
			count++
		}
		check.Must(s.t, lines.Err())
		if count != item.Count || count == 0 {
			s.t.Errorf("%s: %d lines, want %d as in the manifest", item.URL, count, item.Count)
		}
		_ = resp.Body.Close()
	}
	return byType
}

// objectKeys lists all objects in the bucket.
func (s *stack) objectKeys() []string {
	s.t.Helper()
	store := s.store()
	var keys []string
	check.Must(s.t, store.List(s.t.Context(), "", func(o objects.Info) error { keys = append(keys, o.Key); return nil }))
	return keys
}

// settledKeys returns the keys of all objects when no finished job has temporary ones: a worker deletes them after the
// client can see the manifest.
func (s *stack) settledKeys() (keys []string) {
	s.t.Helper()
	check.Eventually(s.t, time.Minute, "the temporary objects are deleted", func() bool {
		keys = s.objectKeys()
		return !slices.ContainsFunc(keys, func(key string) bool {
			origin, ours := export.ParseKey(key)
			return !ours || origin.Scaffolding
		})
	})
	return keys
}

func (s *stack) store() *objects.Store {
	s.t.Helper()
	store, err := objects.Open(objects.Config{
		Endpoint: s.s3.Endpoint, AccessKey: s.s3.AccessKey, SecretKey: s.s3.SecretKey, Bucket: s.s3.Bucket,
	})
	check.Must(s.t, err)
	return store
}
