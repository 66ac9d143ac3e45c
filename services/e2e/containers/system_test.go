//go:build containers

package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
	"github.com/sluice-fhir/sluice/services/ops"
)

// project separates the containers, networks and volumes of the test from those of `make up`.
const project = "sluice-test"

// system is the whole system in containers.
type system struct {
	t      *testing.T
	root   string // of the repository
	work   string // a folder of the test, with bin/sluice
	state  string // SLUICE_COMPOSE_STATE
	env    []string
	ports  map[string]int
	engine engine
	peaks  peaks
	began  time.Time

	exports []*running
	redis   string // address of the operator
	ops     *ops.Operator
	logs    string // of containers that are removed
}

func newSystem(t *testing.T) *system {
	t.Helper()
	root, err := filepath.Abs("../../..")
	check.Must(t, err)
	work := t.TempDir()
	s := &system{
		t: t, root: root, work: work, state: filepath.Join(work, "state"), ports: map[string]int{}, engine: newEngine(t),
		began: time.Now(), peaks: peaks{byService: map[string]*memory{}},
	}
	for _, setting := range os.Environ() {
		if !strings.HasPrefix(setting, "MAKE") && !strings.HasPrefix(setting, "MFLAGS=") {
			s.env = append(s.env, setting)
		}
	}
	s.env = append(s.env, "COMPOSE_PROJECT_NAME="+project, "SLUICE_COMPOSE_STATE="+s.state, "TAG=test", "COMPOSE_PROFILES=",
		"PUBLIC_HOST=", "LOG_LEVEL=debug")
	var held []net.Listener // so that no port comes twice
	for _, name := range []string{"API", "AUTH", "SCHEDULER", "PROMETHEUS", "GRAFANA", "KEYCLOAK"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		check.Must(t, err)
		held = append(held, listener)
		s.ports[name] = listener.Addr().(*net.TCPAddr).Port
		s.env = append(s.env, name+"_PORT="+strconv.Itoa(s.ports[name]))
	}
	for _, listener := range held {
		check.Must(t, listener.Close())
	}
	return s
}

// step prints what comes next, and the time since the start.
func (s *system) step(format string, args ...any) {
	s.t.Helper()
	s.t.Logf("%4.0f s  %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// command returns a command with the settings of the test's project, in the root of the repository.
func (s *system) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = s.root, s.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// start starts a command. The result waits for it and returns its output.
func (s *system) start(program string, args ...string) (wait func() string) {
	s.t.Helper()
	var out bytes.Buffer
	cmd := s.command(s.t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	check.Must(s.t, cmd.Start())
	return func() string {
		s.t.Helper()
		if err := cmd.Wait(); err != nil {
			s.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, &out)
		}
		return out.String()
	}
}

// run runs a command and returns its output.
func (s *system) run(program string, args ...string) string {
	s.t.Helper()
	return s.start(program, args...)()
}

// compose runs docker compose as a user does after `make up`.
func (s *system) compose(args ...string) string {
	s.t.Helper()
	return s.run("docker", append([]string{"compose", "--env-file", filepath.Join(s.state, ".env")}, args...)...)
}

func (s *system) scale(workers int) {
	s.t.Helper()
	s.compose("up", "--detach", "--wait", "--no-recreate", "--scale", fmt.Sprintf("worker=%d", workers))
}

// throttle limits the processor time of each worker, in percent of one processor; 0 ends it. A small machine exports the
// whole population within seconds otherwise.
func (s *system) throttle(percent int) {
	s.t.Helper()
	for _, worker := range s.containers("worker") {
		if worker.State.Status == "running" {
			s.limit(worker.ID, percent)
		}
	}
}

func (s *system) limit(id string, percent int) {
	s.t.Helper()
	quota := percent * 1000
	if percent == 0 {
		quota = -1
	}
	s.run("docker", "update", "--cpu-period", "100000", "--cpu-quota", strconv.Itoa(quota), id)
}

// allWell waits until every container is healthy or has finished.
func (s *system) allWell() {
	s.t.Helper()
	var bad []string
	what := func() string { return "all containers are healthy; not: " + strings.Join(bad, ", ") }
	s.eventually(2*time.Minute, what, func() bool {
		bad = nil
		for _, c := range s.containers() {
			if !c.well() {
				bad = append(bad, c.Name)
			}
		}
		return len(bad) == 0
	})
}

// secret returns the content of a file of the state folder.
func (s *system) secret(name string) string {
	s.t.Helper()
	content, err := os.ReadFile(filepath.Join(s.state, name))
	check.Must(s.t, err)
	return strings.TrimSpace(string(content))
}

// address returns the address of a store's container, which this machine reaches although no port is published.
func (s *system) address(service string) string {
	s.t.Helper()
	for _, c := range s.containers(service) {
		for _, network := range c.NetworkSettings.Networks {
			return network.IPAddress
		}
	}
	s.t.Fatalf("%s has no address", service)
	return ""
}

// operator reads the jobs from the Redis of the system, as `sluice admin` does.
func (s *system) operator() *ops.Operator {
	s.t.Helper()
	address := s.address("redis")
	if s.redis == address {
		return s.ops
	}
	at := strings.Replace(s.secret("redis_url"), "@redis:", "@"+address+":", 1)
	jobs, err := jobstore.Open(at, nil)
	check.Must(s.t, err)
	tasks, err := queue.Open(at)
	check.Must(s.t, err)
	s.t.Cleanup(func() { _, _ = jobs.Close(), tasks.Close() })
	s.redis, s.ops = address, &ops.Operator{Jobs: jobs, Queue: tasks, Now: time.Now}
	return s.ops
}

func (s *system) bucket() *objects.Store {
	s.t.Helper()
	store, err := objects.Open(objects.Config{
		Endpoint: "http://" + s.address("minio") + ":9000", AccessKey: "sluice",
		SecretKey: s.secret("s3_secret_key"), Bucket: "sluice",
	})
	check.Must(s.t, err)
	return store
}

// stored returns the jobs that have objects or unfinished uploads, with their numbers.
func (s *system) stored() (files, uploads map[export.JobID]int) {
	s.t.Helper()
	files, uploads = map[export.JobID]int{}, map[export.JobID]int{}
	store := s.bucket()
	check.Must(s.t, store.List(s.t.Context(), "", func(o objects.Info) error {
		job, _ := export.JobOf(o.Key)
		files[job]++
		return nil
	}))
	check.Must(s.t, store.Uploads(s.t.Context(), func(u objects.Upload) error {
		job, _ := export.JobOf(u.Key)
		uploads[job]++
		return nil
	}))
	return files, uploads
}

// running is a client of an export.
type running struct {
	dir    string
	job    export.JobID
	url    string
	out    bytes.Buffer // its report
	done   chan struct{}
	failed error // when done

	mu   sync.Mutex
	said bytes.Buffer
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.Write(p)
}

func (r *running) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.String()
}

var startedLine = regexp.MustCompile(`(?m)^export ([a-z2-7]{26}): (https://\S+)$`)

// client returns the flags of the demo client.
func (s *system) client() []string {
	return []string{
		"--token-url", fmt.Sprintf("https://localhost:%d/auth/token", s.ports["AUTH"]), "--client-id", "demo",
		"--client-key", filepath.Join(s.state, "client", "demo.key.json"),
	}
}

func (s *system) base() string { return fmt.Sprintf("https://localhost:%d/fhir", s.ports["API"]) }

// export starts a client that exports everything, and waits until its job is accepted.
func (s *system) export() *running {
	s.t.Helper()
	r := &running{dir: filepath.Join(s.work, fmt.Sprintf("export-%d", len(s.exports))), done: make(chan struct{})}
	cmd := s.command(s.t.Context(), filepath.Join(s.work, "bin", "sluice"), append([]string{
		"export", "--base", s.base(), "--group", "all", "--out", r.dir, "--keep-gzip", "--json",
	}, s.client()...)...)
	cmd.Env = append(slices.Clone(cmd.Env), "SSL_CERT_FILE="+filepath.Join(s.state, "ca.pem"))
	cmd.Stdout, cmd.Stderr = &r.out, r
	check.Must(s.t, cmd.Start())
	go func() {
		r.failed = cmd.Wait()
		close(r.done)
	}()
	s.exports = append(s.exports, r)
	s.eventually(time.Minute, func() string { return "the export is accepted: " + r.log() }, func() bool {
		found := startedLine.FindStringSubmatch(r.log())
		if found == nil {
			return false
		}
		r.job, r.url = export.JobID(found[1]), found[2]
		return true
	})
	return r
}

// verify waits for the client, and compares what it has with the truth.
func (s *system) verify(r *running, truth map[string]expect.Fingerprint) {
	s.t.Helper()
	select {
	case <-r.done:
	case <-time.After(10 * time.Minute):
		s.t.Fatalf("export %s does not end: %s", r.job, r.log())
	}
	if r.failed != nil {
		s.t.Fatalf("export %s: %v\n%s", r.job, r.failed, r.log())
	}
	var report struct {
		Errors, Total struct{ Files, Resources int }
		Incomplete    int
	}
	check.Must(s.t, json.Unmarshal(r.out.Bytes(), &report))
	if report.Errors.Files != 0 || report.Incomplete != 0 {
		s.t.Errorf("export %s: %d error files, %d problems", r.job, report.Errors.Files, report.Incomplete)
	}
	s.same(r.dir, truth)
	check.Must(s.t, os.RemoveAll(r.dir))
}

// same compares the files of a client with the truth.
func (s *system) same(dir string, truth map[string]expect.Fingerprint) {
	s.t.Helper()
	got := expect.Folder(s.t, dir)
	for typ := range truth {
		if got[typ] != truth[typ] {
			s.t.Errorf("%s: %s has %d lines, want %d", filepath.Base(dir), typ, got[typ].Count, truth[typ].Count)
		}
	}
	if len(got) != len(truth) {
		s.t.Errorf("%s: %d types, want %d", filepath.Base(dir), len(got), len(truth))
	}
}

// eventually polls until done returns true.
func (s *system) eventually(most time.Duration, what func() string, done func() bool) {
	s.t.Helper()
	if !check.Within(s.t, most, done) {
		s.t.Fatalf("timeout after %s: %s", most, what())
	}
}

func text(what string) func() string { return func() string { return what } }
