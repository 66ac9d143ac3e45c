package e2e

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// admin runs an admin command on the deployment and returns its output.
func (s *stack) admin(want int, args ...string) string {
	s.t.Helper()
	return sluice(s.t, want, append([]string{"admin"}, append(args, "--redis", s.redis)...)...)
}

// An operator drains a worker in the middle of a unit: it exits with 0, and another worker runs the unit.
func TestAnOperatorDrainsAWorker(t *testing.T) {
	t.Parallel()
	data, group := populationForFaults(t)
	proxyTo := testenv.ObjectStore(t)
	proxy := objectstest.NewProxy(t, proxyTo.Endpoint)
	s := deploy(t, setup{
		data: data, endpoint: proxy.Endpoint(),
		worker:    []string{"SLUICE_FILE_BYTES=300000", "SLUICE_WORKER_CONCURRENCY=2", "SLUICE_WORKER_DRAIN=0s"},
		scheduler: []string{"SLUICE_SWEEP_EVERY=1s", "SLUICE_SWEEP_GRACE=0s", "SLUICE_UNIT_SILENCE=10m"},
	})
	first := s.startWorker()
	id := first.ready()["worker"]
	g := holdObservations(proxy, 2)
	status := s.kickoff(group, "")
	g.wait(t)
	job := status[strings.LastIndex(status, "/")+1:]
	if shown := s.admin(0, "job", "show", job); !strings.Contains(shown, "running") || !strings.Contains(shown, "Observation") {
		t.Errorf("%s", shown)
	}
	log := filepath.Join(t.TempDir(), "audit.ndjson")
	check.Eventually(t, 20*time.Second, "the worker is drainable and reports its units", func() bool {
		var list struct {
			Workers []struct {
				ID        string `json:"id"`
				Drainable bool   `json:"drainable"`
				Units     []any  `json:"units"`
			} `json:"workers"`
		}
		check.Must(t, json.Unmarshal([]byte(s.admin(0, "worker", "list", "--json")), &list))
		return len(list.Workers) == 1 && list.Workers[0].ID == id && list.Workers[0].Drainable && len(list.Workers[0].Units) > 0
	})
	s.admin(0, "worker", "drain", id, "--yes", "--audit-log", log)
	check.Eventually(t, 20*time.Second, "the worker drains", func() bool {
		_, heard := first.Find(func(e map[string]any) bool { return e["msg"] == "worker is drained by an operator" })
		return heard
	})
	close(g.release)
	<-first.Exited()
	if code := first.ExitCode(); code != 0 {
		t.Errorf("the worker exited with %d", code)
	}

	s.admin(0, "kickoffs", "pause", "--reason", "a test", "--audit-log", log)
	resp := s.request(http.MethodGet, publicBase+"/Group/"+group+"/$export", "everything", nil)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("kick-off while kick-offs are paused: %s", resp.Status)
	}
	second := s.startWorker()
	// UNIT_SILENCE is long, so the second worker only gets the unit by a hand-back. The pause does not stop the job.
	m := s.wait(status, time.Minute)
	people := expect.Read(t, data)
	expect.SameLines(t, "after the drain", s.lines(m.Output), people.Export(people.Members(group)))
	claimed, found := second.Find(observationUnit("unit claimed"))
	if !found || claimed["attempt"] != float64(1) {
		t.Errorf("the second worker's claim: %v; a hand-back must not count as a failure", claimed)
	}
	s.onlyManifestIsStored(status, m)
	s.admin(0, "kickoffs", "resume", "--audit-log", log)
	s.kickoff(group, "")
	sluice(t, 0, "admin", "audit", "verify", log)
}
