package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/token/development"
	"github.com/sluice-fhir/sluice/services/process"
)

// deployment is one API, one scheduler and some workers, as processes, with a Redis database and a bucket of its own.
type deployment struct {
	base      string
	redis     string
	store     *objects.Store
	bucket    string
	issuer    *development.Issuer
	client    *bulkclient.Client
	api       *service
	scheduler *service
	workers   []*service
	processes []*service

	startWorker func(more ...string) (*service, error) // with further settings; it does not wait for readiness

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

// deployLargest starts a deployment on the largest population, as deploy does.
func (b *bench) deployLargest(ctx context.Context, workers int) (*deployment, error) {
	p, err := b.population(ctx, b.patients)
	if err != nil {
		return nil, err
	}
	return b.deploy(ctx, p, workers)
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
	common := b.servers.settings(d.redis, d.bucket)
	start := func(name string, env ...string) (*service, error) {
		p, err := startService(filepath.Join(b.binaries, name), append(slices.Clone(common), env...))
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
	if d.scheduler, err = start("scheduler"); err != nil {
		return d, err
	}
	d.startWorker = func(more ...string) (*service, error) {
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
		if _, err := p.Ready(ctx); err != nil {
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
		_ = p.Stop(time.Minute) // a service that does not stop is killed
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

// service is a running service. It keeps no log, which is long.
type service struct {
	*process.Process

	mu      sync.Mutex
	claimed []claim
}

// claim is a line of a worker's log.
type claim struct {
	at   time.Time
	unit string
}

func startService(path string, env []string) (s *service, err error) {
	s = &service{}
	s.Process, err = process.Start(path, env, process.Observe(s.note))
	return s, err
}

// note keeps the log's line of a claimed unit.
func (s *service) note(entry map[string]any) {
	if entry["msg"] != "unit claimed" {
		return
	}
	text, _ := entry["time"].(string)
	unit, _ := entry["unit"].(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return // it would show as a missing claim
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claimed = append(s.claimed, claim{at, unit})
}

// claims returns the units that the worker has claimed so far.
func (s *service) claims() []claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.claimed)
}

// metrics returns the service's metrics by their series, such as `go_goroutines` or `name{label="value"}`.
func (s *service) metrics(ctx context.Context) (map[string]float64, error) {
	addresses, err := s.Ready(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := plain(ctx, "http://"+addresses["private"]+"/metrics", "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	series := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		space := max(strings.LastIndexByte(line, ' '), 0)
		if value, err := strconv.ParseFloat(strings.TrimSpace(line[space:]), 64); err == nil { // not a comment
			series[line[:space]] = value
		}
	}
	return series, lines.Err()
}

func freeAddr(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
