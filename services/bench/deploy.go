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
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// deployment is one API, one scheduler and some workers, as processes, with a Redis database and a bucket of its own.
type deployment struct {
	base      string
	redis     string
	store     *objects.Store
	bucket    string
	issuer    *development.Issuer
	client    *bulkclient.Client
	api       *process
	workers   []*process
	processes []*process

	startWorker func(more ...string) (*process, error) // with further settings; it does not wait for readiness

	mu       sync.Mutex
	token    string
	signedAt time.Time
}

const subject = "bench"

// deploy starts a deployment on the population, with limits too high to affect the measurement.
func (b *bench) deploy(ctx context.Context, p population, workers int, more ...string) (*deployment, error) {
	return b.deployWith(ctx, p, workers, []string{
		"SLUICE_POLL_LIMIT=1000000", "SLUICE_JOB_LIMIT=1000000", "SLUICE_KICKOFF_LIMIT=100000000",
		"SLUICE_FINISHED_LIMIT=1000000", "SLUICE_DOWNLOAD_LIMIT=1000",
		"SLUICE_STATUS_LIMIT=100000000",
	}, more...)
}

// deployWith starts a deployment with the given settings of the API and additional settings of the workers.
func (b *bench) deployWith(
	ctx context.Context, p population, workers int, api []string, more ...string,
) (d *deployment, err error) {
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "deployment-")
	if err != nil {
		return nil, err
	}
	d = &deployment{base: "http://" + addr + "/fhir", redis: b.servers.newRedis()}
	defer func() {
		if err != nil {
			d.stop()
		}
	}()
	if d.store, d.bucket, err = b.servers.newBucket(ctx); err != nil {
		return d, err
	}
	if d.issuer, err = development.Open(filepath.Join(dir, "issuer")); err != nil {
		return d, err
	}
	if d.client, err = bulkclient.New(bulkclient.Config{Base: d.base, Tokens: d, Parallel: 4}); err != nil {
		return d, err
	}
	issuers := filepath.Join(dir, "issuers.yaml")
	err = os.WriteFile(issuers, fmt.Appendf(nil, "issuers:\n- name: %q\n  audiences: [%q]\n  jwks_file: %q\n",
		development.IssuerName, d.base, d.issuer.JWKSFile()), 0o600)
	if err != nil {
		return d, err
	}
	common := []string{
		"SLUICE_REDIS_URL=" + d.redis,
		"SLUICE_S3_ENDPOINT=" + b.servers.s3.Scheme + "://" + b.servers.s3.Host,
		"SLUICE_S3_ACCESS_KEY=" + b.servers.s3.User.Username(), "SLUICE_S3_SECRET_KEY=" + b.servers.secret(),
		"SLUICE_S3_BUCKET=" + d.bucket,
	}
	start := func(name string, env ...string) (*process, error) {
		p, err := startProcess(ctx, filepath.Join(b.binaries, name), append(slices.Clone(common), env...))
		if err == nil {
			d.processes = append(d.processes, p)
		}
		return p, err
	}
	d.api, err = start("api", append(slices.Clone(api), "SLUICE_API_ADDR="+addr, "SLUICE_BASE_URL="+d.base,
		"SLUICE_TOKEN_ISSUERS_FILE="+issuers, "SLUICE_DIRECTORY_URL="+p.database)...)
	if err != nil {
		return d, err
	}
	if _, err = start("scheduler"); err != nil {
		return d, err
	}
	d.startWorker = func(more ...string) (*process, error) {
		return start("worker", append(slices.Clone(more),
			"SLUICE_DIRECTORY_URL="+p.database, "SLUICE_SOURCE_URL="+p.database)...)
	}
	for range workers {
		worker, err := d.startWorker(more...)
		if err != nil {
			return d, err
		}
		d.workers = append(d.workers, worker)
	}
	for _, p := range d.processes {
		if err := p.waitReady(ctx); err != nil {
			return d, err
		}
	}
	return d, d.waitReady(ctx)
}

// waitReady waits until the API is ready.
func (d *deployment) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		resp, err := d.get(ctx, strings.TrimSuffix(d.base, "/fhir")+"/readyz", "")
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
			return errors.New("the API did not become ready")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Token returns a token that is valid for minutes, so that the figures do not include signing.
func (d *deployment) Token(context.Context, string) (string, error) {
	const lives = 5 * time.Minute
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.signedAt) < lives/2 {
		return d.token, nil
	}
	var err error
	d.signedAt = time.Now()
	d.token, err = d.issuer.Sign(subject, "system/*.rs", d.base, lives, d.signedAt)
	return d.token, err
}

// stop stops every process. Their data is removed with the servers.
func (d *deployment) stop() {
	for _, p := range d.processes {
		p.stop()
	}
	if d.client != nil {
		d.client.Close()
	}
	if d.store != nil {
		d.store.Close()
	}
}

// sluice runs the command line.
func (b *bench) sluice(ctx context.Context, args ...string) error {
	said, err := exec.CommandContext(ctx, filepath.Join(b.binaries, "sluice"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sluice %s: %w: %s", args[0], err, said)
	}
	return nil
}

// claim is a line of a worker's log.
type claim struct {
	at    time.Time
	fence int64
}

// claims returns the units that the worker has claimed so far.
func (p *process) claims() []claim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.claimed)
}

// process is a running service.
type process struct {
	name  string
	cmd   *exec.Cmd
	ready chan struct{} // closed when it has logged that it listens
	done  chan struct{} // closed when it has ended
	last  string        // its last line, to be read when done is closed

	mu      sync.Mutex
	claimed []claim

	private string // address of its private listener, to be read when ready is closed
}

func startProcess(ctx context.Context, path string, env []string) (*process, error) {
	p := &process{name: filepath.Base(path), ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), path) // it gets SIGTERM, not SIGKILL
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
		_ = p.cmd.Wait() // it was stopped, or has logged why it exited
	}()
	return p, nil
}

func (p *process) follow(stderr io.Reader) {
	said := false
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		p.last = lines.Text()
		var entry struct {
			Time    time.Time `json:"time"`
			Msg     string    `json:"msg"`
			Private string    `json:"private"`
			Fence   int64     `json:"fence"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue
		}
		if entry.Msg == "unit claimed" {
			p.mu.Lock()
			p.claimed = append(p.claimed, claim{at: entry.Time, fence: entry.Fence})
			p.mu.Unlock()
		}
		if strings.HasSuffix(entry.Msg, " has started") && !said {
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

// peakMemory returns the peak of the resident set in MiB, 0 if the system does not report it.
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
