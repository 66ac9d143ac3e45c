//go:build containers

package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// engine is a client of Docker's API.
type engine struct{ http *http.Client }

func newEngine(t *testing.T) engine {
	t.Helper()
	inspect := exec.CommandContext(t.Context(), "docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
	out, err := inspect.Output()
	check.Must(t, err)
	socket, local := strings.CutPrefix(strings.TrimSpace(string(out)), "unix://")
	if !local {
		t.Fatalf("the engine at %s is not on this machine", out)
	}
	return engine{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

func (e engine) get(ctx context.Context, path string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	response, err := e.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// ofProject is the filter for what belongs to the test's project.
func ofProject() string {
	return "filters=" + url.QueryEscape(`{"label":["com.docker.compose.project=`+project+`"]}`)
}

// container is the part of docker inspect that the test reads.
type container struct {
	ID    string `json:"Id"`
	Name  string
	State struct {
		Status    string
		ExitCode  int
		OOMKilled bool
		Health    *struct{ Status string }
	}
	RestartCount int
	Config       struct {
		Hostname string
		Labels   map[string]string
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

func (c container) service() string { return c.Config.Labels["com.docker.compose.service"] }

// well reports whether the container is healthy, or has finished its work.
func (c container) well() bool {
	if c.State.Health == nil {
		return c.State.Status == "exited" && c.State.ExitCode == 0
	}
	return c.State.Status == "running" && c.State.Health.Status == "healthy"
}

func (e engine) ids(ctx context.Context) ([]string, error) {
	var listed []struct{ ID string }
	err := e.get(ctx, "/containers/json?all=1&"+ofProject(), &listed)
	var ids []string
	for _, c := range listed {
		ids = append(ids, c.ID)
	}
	return ids, err
}

// containers returns all containers of the project, of the named services if there are names.
func (s *system) containers(services ...string) (found []container) {
	s.t.Helper()
	ids, err := s.engine.ids(s.t.Context())
	check.Must(s.t, err)
	for _, id := range ids {
		var c container
		if err := s.engine.get(s.t.Context(), "/containers/"+id+"/json", &c); err != nil {
			continue // removed meanwhile
		}
		if len(services) == 0 || slices.Contains(services, c.service()) {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b container) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// memory is what the containers of a service have used at most.
type memory struct {
	containers map[string]bool
	used       int64 // the most that a sample found and the kernel could not reclaim
	max        int64 // cgroup v1: the kernel's own maximum, which includes the page cache
	limit      int64
	samples    int
}

// peaks samples the memory of all containers of the project.
type peaks struct {
	mu        sync.Mutex
	byService map[string]*memory
}

// watch samples until the context ends. Sampled is anonymous and shared memory, which is what makes a container fail at its
// limit: the page cache of the files of a container also counts as its memory, but the kernel takes it back.
func (p *peaks) watch(ctx context.Context, e engine) {
	for ctx.Err() == nil {
		ids, _ := e.ids(ctx)
		var all sync.WaitGroup // the engine takes a second for each
		for _, id := range ids {
			all.Go(func() { p.sample(ctx, e, id) })
		}
		all.Wait()
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (p *peaks) sample(ctx context.Context, e engine, id string) {
	var c container
	var now struct {
		Memory struct {
			Max   int64            `json:"max_usage"`
			Limit int64            `json:"limit"`
			Stats map[string]int64 `json:"stats"`
		} `json:"memory_stats"`
	}
	if e.get(ctx, "/containers/"+id+"/json", &c) != nil || c.State.Status == "exited" ||
		e.get(ctx, "/containers/"+id+"/stats?stream=false&one-shot=true", &now) != nil || now.Memory.Limit == 0 {
		return // it ended meanwhile
	}
	prefix := "" // cgroup v2
	if _, v1 := now.Memory.Stats["total_inactive_anon"]; v1 {
		prefix = "total_"
	}
	used := int64(0)
	for _, name := range []string{"active_anon", "inactive_anon", "unevictable"} {
		used += now.Memory.Stats[prefix+name]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.byService[c.service()]
	if m == nil {
		m = &memory{containers: map[string]bool{}}
		p.byService[c.service()] = m
	}
	m.containers[id] = true
	m.used, m.max, m.limit = max(m.used, used), max(m.max, now.Memory.Max), now.Memory.Limit
	m.samples++
}
