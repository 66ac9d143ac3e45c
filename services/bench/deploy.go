package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// deployment is one API, one scheduler and some workers, as processes.
type deployment struct {
	base      string
	issuer    *development.Issuer
	api       *process
	workers   []*process
	processes []*process
}

const subject = "bench"

func s3() (*url.URL, error) {
	place, err := url.Parse(os.Getenv("SLUICE_TEST_S3"))
	if err != nil || place.Host == "" || place.User == nil {
		return nil, errors.New("SLUICE_TEST_S3 is not set: run scripts/bench.sh")
	}
	return place, nil
}

func deploy(ctx context.Context, opts options, dir, bucket string) (_ *deployment, err error) {
	place, err := s3()
	if err != nil {
		return nil, err
	}
	secret, _ := place.User.Password()
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	d := &deployment{base: "http://" + addr + "/fhir"}
	if d.issuer, err = development.Open(filepath.Join(dir, "issuer")); err != nil {
		return nil, err
	}
	issuers, access := filepath.Join(dir, "issuers.yaml"), filepath.Join(dir, "access.yaml")
	err = errors.Join(
		os.WriteFile(issuers, fmt.Appendf(nil, "issuers:\n- name: %q\n  audiences: [%q]\n  jwks_file: %q\n",
			development.IssuerName, d.base, d.issuer.JWKSFile()), 0o600),
		os.WriteFile(access, fmt.Appendf(nil, "- {issuer: %q, subject: %q, types: all, groups: all, patients: all}\n",
			development.IssuerName, subject), 0o600))
	if err != nil {
		return nil, err
	}
	common := []string{
		"SLUICE_REDIS_URL=" + os.Getenv("SLUICE_TEST_REDIS"),
		"SLUICE_S3_ENDPOINT=" + place.Scheme + "://" + place.Host,
		"SLUICE_S3_ACCESS_KEY=" + place.User.Username(), "SLUICE_S3_SECRET_KEY=" + secret, "SLUICE_S3_BUCKET=" + bucket,
	}
	directory := []string{"SLUICE_GROUPS_DIR=" + opts.data, "SLUICE_ACCESS_FILE=" + access}
	start := func(name string, env ...[]string) (*process, error) {
		p, err := startProcess(ctx, filepath.Join(opts.binaries, name), slices.Concat(env...))
		if err != nil {
			d.stop()
			return nil, err
		}
		d.processes = append(d.processes, p)
		return p, nil
	}
	d.api, err = start("api", common, directory, []string{
		"SLUICE_API_ADDR=" + addr, "SLUICE_BASE_URL=" + d.base, "SLUICE_TOKEN_ISSUERS_FILE=" + issuers,
		"SLUICE_POLL_LIMIT=1000",
	})
	if err != nil {
		return nil, err
	}
	if _, err := start("scheduler", common); err != nil {
		return nil, err
	}
	for range opts.workers {
		worker, err := start("worker", common, directory, []string{
			"SLUICE_SOURCE_DIR=" + opts.data, "SLUICE_WORKER_CONCURRENCY=" + strconv.Itoa(opts.concurrency),
		})
		if err != nil {
			return nil, err
		}
		d.workers = append(d.workers, worker)
	}
	for _, p := range d.processes {
		if err := p.waitReady(ctx); err != nil {
			d.stop()
			return nil, err
		}
	}
	return d, d.waitReady(ctx)
}

// waitReady waits until the API can use all it depends on.
func (d *deployment) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		resp, err := d.get(ctx, strings.TrimSuffix(d.base, "/fhir")+"/readyz")
		if err == nil {
			status := resp.StatusCode
			if err := resp.Body.Close(); err != nil {
				return err
			}
			if status == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			d.stop()
			return errors.New("the API did not become ready")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Token signs a fresh token for every request.
func (d *deployment) Token(context.Context, string) (string, error) {
	return d.issuer.Sign(subject, "system/*.rs", d.base, 5*time.Minute, time.Now())
}

func (d *deployment) stop() {
	for _, p := range d.processes {
		p.stop()
	}
}

// process is a running service.
type process struct {
	name  string
	cmd   *exec.Cmd
	ready chan struct{} // closed when it says so
	done  chan struct{} // closed when it has ended
	last  string        // its last line, to be read when done is closed

	private string // address of its private listener, to be read when ready is closed
}

func startProcess(ctx context.Context, path string, env []string) (*process, error) {
	p := &process{name: filepath.Base(path), ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path) // it is told to stop in order, not killed
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.follow(stderr)
		_ = p.cmd.Wait() // it was told to end, or has said why it did
	}()
	return p, nil
}

func (p *process) follow(stderr io.Reader) {
	said := false
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		p.last = lines.Text()
		var entry struct {
			Msg     string `json:"msg"`
			Private string `json:"private"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) == nil && strings.HasSuffix(entry.Msg, " is ready") && !said {
			said = true
			p.private = entry.Private
			close(p.ready)
		}
	}
}

func (p *process) waitReady(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended: %s", p.name, p.last)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	<-p.done
}

// peakMemory returns the peak of the resident set in MiB, 0 where the system does not tell.
func (p *process) peakMemory() float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 64)
			if err == nil {
				return kib / 1024
			}
		}
	}
	return 0
}

func freeAddr(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
