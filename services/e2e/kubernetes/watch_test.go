//go:build kubernetes

package kubernetes

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A watch records the queue, the workers and the memory of all containers while a test runs.
type watch struct {
	t     *testing.T
	began time.Time

	mu      sync.Mutex
	samples []sample
	events  []event
	peaks   map[string]int64 // bytes, by container
}

// A sample is what the scheduler and the Deployment of the workers said at a point in time.
type sample struct {
	at                         time.Duration
	Pending, Active, Scheduled int // units
	replicas, ready            int
}

type event struct {
	at   time.Duration
	what string
}

func startWatch(t *testing.T) *watch {
	w := &watch{t: t, began: time.Now(), peaks: map[string]int64{}}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.sample(ctx) })
	running.Go(func() { w.measure(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return w
}

func (w *watch) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{time.Since(w.began), what})
	last := sample{}
	if len(w.samples) > 0 {
		last = w.samples[len(w.samples)-1]
	}
	w.t.Logf("%4.0f s: %s; %d units wait, %d run, %d of %d workers are ready", time.Since(w.began).Seconds(), what,
		last.Pending+last.Scheduled, last.Active, last.ready, last.replicas)
}

func (w *watch) last() sample {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.samples) == 0 {
		return sample{}
	}
	return w.samples[len(w.samples)-1]
}

// sample asks a scheduler every second or two, by a port that kubectl forwards to it. A scheduler that stops is replaced.
func (w *watch) sample(ctx context.Context) {
	for ctx.Err() == nil {
		forward, cancel := context.WithCancel(ctx)
		cmd := exec.CommandContext(forward, "kubectl", "--namespace", namespace, "port-forward", "service/sluice-scheduler", ":9090")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			lines := bufio.NewScanner(out)
			if lines.Scan() { // Forwarding from 127.0.0.1:12345 -> 9090
				_, rest, _ := strings.Cut(lines.Text(), "127.0.0.1:")
				port, _, _ := strings.Cut(rest, " ")
				for w.ask(ctx, "http://127.0.0.1:"+port+"/scale") {
					pause(ctx, time.Second)
				}
			}
		}
		cancel()
		_ = cmd.Wait()
		pause(ctx, time.Second)
	}
}

func (w *watch) ask(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	s := sample{at: time.Since(w.began)}
	if response.StatusCode != http.StatusOK || json.NewDecoder(response.Body).Decode(&s) != nil {
		return false
	}
	out, err := exec.CommandContext(ctx, "kubectl", "--namespace", namespace, "get", "deployment", "sluice-worker", "--output", "json").Output()
	var workers deployment
	if err != nil || json.Unmarshal(out, &workers) != nil {
		return false
	}
	s.replicas, s.ready = workers.Spec.Replicas, workers.Status.ReadyReplicas
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples = append(w.samples, s)
	return true
}

var workingSet = regexp.MustCompile(`(?m)^container_memory_working_set_bytes\{container="([^"]*)",namespace="([^"]*)",pod="[^"]*"\} (\S+)`)

// measure reads the memory of all containers from the kubelets.
func (w *watch) measure(ctx context.Context) {
	// A kubelet has a certificate that it signed itself.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for ; ctx.Err() == nil; pause(ctx, 2*time.Second) {
		for _, node := range []string{"10.89.0.11", "10.89.0.12"} {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+node+":10250/metrics/resource", nil)
			if err != nil {
				continue
			}
			response, err := client.Do(request)
			if err != nil {
				continue
			}
			var text strings.Builder
			_, _ = bufio.NewReader(response.Body).WriteTo(&text)
			_ = response.Body.Close()
			w.mu.Lock()
			for _, match := range workingSet.FindAllStringSubmatch(text.String(), -1) {
				if bytes, err := strconv.ParseFloat(match[3], 64); err == nil && match[2] == namespace {
					w.peaks[match[1]] = max(w.peaks[match[1]], int64(bytes))
				}
			}
			w.mu.Unlock()
		}
	}
}

func pause(ctx context.Context, how time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(how):
	}
}
