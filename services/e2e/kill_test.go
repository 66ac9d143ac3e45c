package e2e

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// populationForFaults is the Synthea sample where it is at hand, else a generated one, with a large group of it.
func populationForFaults(t *testing.T) (data, group string) {
	t.Helper()
	if data, there := testenv.Synthea(t); there {
		return data, "BlueCrossBlueShield"
	}
	return generated(t, 60), "all"
}

// gate delays a response of the store until the test releases it. Meanwhile the worker is in the middle of its unit, and
// the store has the object.
type gate struct {
	once    sync.Once
	reached chan struct{}
	release chan struct{}
}

func newGate() *gate { return &gate{reached: make(chan struct{}), release: make(chan struct{})} }

func (g *gate) hold() {
	g.once.Do(func() { close(g.reached) })
	<-g.release
}

// holdObservations delays the response to the n'th write of an Observation file.
func holdObservations(proxy *objectstest.Proxy, nth int64) *gate {
	g := newGate()
	var writes atomic.Int64
	proxy.OnReply(func(reply *http.Response) error {
		r := reply.Request
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/Observation/") && writes.Add(1) == nth {
			g.hold()
		}
		return nil
	})
	return g
}

func (g *gate) wait(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(time.Minute):
		t.Fatal("the file was not written")
	}
}

// holder returns the worker that has claimed the Observation unit and not settled it.
func holder(t *testing.T, workers []*service) *service {
	t.Helper()
	for _, w := range workers {
		if _, found := w.Find(observationUnit("unit claimed")); found {
			return w
		}
	}
	t.Fatal("no worker holds the Observation unit")
	return nil
}

func observationUnit(msg string) func(map[string]any) bool {
	return func(e map[string]any) bool { return e["msg"] == msg && e["type"] == "Observation" }
}

func TestAWorkerKilledInTheMiddleOfObservation(t *testing.T) { // pitfalls 8, 11, 13, 26, 27
	t.Parallel()
	data, group := populationForFaults(t)
	proxyTo := testenv.ObjectStore(t)
	proxy := objectstest.NewProxy(t, proxyTo.Endpoint)
	s := deploy(t, setup{
		data: data, endpoint: proxy.Endpoint(),
		worker:    []string{"SLUICE_FILE_BYTES=300000", "SLUICE_WORKER_CONCURRENCY=2"},
		scheduler: []string{"SLUICE_SWEEP_EVERY=1s", "SLUICE_SWEEP_GRACE=0s"},
	})
	workers := []*service{s.startWorker(), s.startWorker()}
	undisturbed := s.lines(s.wait(s.kickoff(group, ""), time.Minute).Output)
	for _, w := range workers { // the logs of the new ones only cover the next job
		w.stop()
	}
	workers = []*service{s.startWorker(), s.startWorker()}
	for _, w := range workers {
		w.ready()
	}

	g := holdObservations(proxy, 3)
	status := s.kickoff(group, "")
	g.wait(t)
	victim := holder(t, workers)
	victim.Kill()
	killed := time.Now()
	close(g.release)

	survivor := workers[0]
	if survivor == victim {
		survivor = workers[1]
	}
	check.Eventually(t, 30*time.Second, "the unit runs elsewhere", func() bool {
		_, found := survivor.Find(func(e map[string]any) bool {
			return observationUnit("unit claimed")(e) && e["fence"] != float64(1)
		})
		return found
	})
	t.Logf("the unit ran elsewhere %.1f s after the kill", time.Since(killed).Seconds())

	m := s.wait(status, time.Minute)
	expect.SameLines(t, "after the kill", s.lines(m.Output), undisturbed)
	if len(m.Error) != 0 {
		t.Errorf("errors: %v", m.Error)
	}
	s.onlyManifestIsStored(status, m)
}

func TestAWorkerThatStopsHandsItsUnitBack(t *testing.T) { // pitfall 8
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
	first.ready()
	g := holdObservations(proxy, 2)
	status := s.kickoff(group, "")
	g.wait(t)
	first.stop()
	close(g.release)
	second := s.startWorker()
	// UNIT_SILENCE is long, so the second worker can get the unit only by a hand-back.
	m := s.wait(status, time.Minute)
	expect.SameLines(t, "after the hand-back", s.lines(m.Output), expect.Read(t, data).Export(expect.Read(t, data).Members(group)))
	claimed, found := second.Find(observationUnit("unit claimed"))
	if !found || claimed["attempt"] != float64(1) {
		t.Errorf("the second worker's claim: %v; a hand-back must not count as a failure", claimed)
	}
	s.onlyManifestIsStored(status, m)
}

func TestAStoppingWorkerServesItsMetricsUntilItHasDrained(t *testing.T) {
	t.Parallel()
	data := generated(t, 60)
	proxy := objectstest.NewProxy(t, testenv.ObjectStore(t).Endpoint)
	s := deploy(t, setup{data: data, endpoint: proxy.Endpoint(), worker: []string{"SLUICE_WORKER_DRAIN=1m"}})
	worker := s.startWorker()
	private := "http://" + worker.ready()["private"]
	get := func(path string) (status int, body string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, private+path, nil)
		check.Must(t, err)
		response, err := http.DefaultClient.Do(request)
		check.Must(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		check.Must(t, err)
		return response.StatusCode, string(text)
	}
	g := holdObservations(proxy, 1)
	s.kickoff("all", "")
	g.wait(t)
	if status, report := get("/readyz"); status != http.StatusOK {
		t.Errorf("before the stop: %d %s", status, report)
	}
	worker.Signal(syscall.SIGTERM)
	check.Eventually(t, 30*time.Second, "the worker is not ready and serves the metrics of the last unit", func() bool {
		status, _ := get("/readyz")
		_, metrics := get("/metrics")
		return status == http.StatusServiceUnavailable && strings.Contains(metrics, "\nsluice_worker_busy_units 1\n")
	})
	close(g.release)
	worker.stop()
	if _, done := worker.Find(observationUnit("unit ended")); !done {
		t.Error("the unit was not finished")
	}
}

func TestACancelWhileAWorkerIsWriting(t *testing.T) { // spec 5, pitfalls 15, 16
	t.Parallel()
	data, group := populationForFaults(t)
	proxyTo := testenv.ObjectStore(t)
	proxy := objectstest.NewProxy(t, proxyTo.Endpoint)
	s := deploy(t, setup{data: data, endpoint: proxy.Endpoint(), workers: 2, worker: []string{"SLUICE_FILE_BYTES=300000"}})
	g := holdObservations(proxy, 2)
	status := s.kickoff(group, "")
	g.wait(t)
	if resp := s.request(http.MethodDelete, status, "everything", nil); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("DELETE: %s", resp.Status)
	}
	if resp := s.request(http.MethodGet, status, "everything", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("status after the cancel: %s", resp.Status)
	}
	close(g.release) // only now the worker detects the cancel
	// The sweep has its default grace of an hour, so only purges can delete these.
	check.Eventually(t, time.Minute, "the data of the job is deleted", func() bool {
		uploads := 0
		check.Must(t, s.store().Uploads(t.Context(), func(objects.Upload) error { uploads++; return nil }))
		return uploads == 0 && len(s.objectKeys()) == 0 && s.runningUnits() == 0
	})
	if keys := s.objectKeys(); len(keys) != 0 {
		t.Errorf("left in the bucket: %v", keys)
	}
}

// runningUnits counts the units that are claimed and not settled.
func (s *stack) runningUnits() int {
	claimed := 0
	for _, p := range s.processes {
		for _, entry := range p.Lines() {
			switch entry["msg"] {
			case "unit claimed":
				claimed++
			case "unit ended":
				claimed--
			}
		}
	}
	return claimed
}

// onlyManifestIsStored waits until the bucket only holds the manifest and its files: the sweep has removed the files of
// lost attempts and unfinished uploads.
func (s *stack) onlyManifestIsStored(status string, m manifest) {
	s.t.Helper()
	id, err := export.ParseJobID(status[strings.LastIndex(status, "/")+1:])
	check.Must(s.t, err)
	want := []string{}
	for _, item := range slices.Concat(m.Output, m.Error) {
		want = append(want, export.FileKey(id, item.Type, item.URL[strings.LastIndex(item.URL, "/")+1:]))
	}
	slices.Sort(want)
	if len(slices.Compact(slices.Clone(want))) != len(want) {
		s.t.Errorf("a file is listed twice: %v", want)
	}
	var stored []string
	check.Eventually(s.t, 30*time.Second, "only the listed files are stored", func() bool {
		stored = nil
		for _, key := range s.objectKeys() {
			if strings.HasPrefix(key, export.JobPrefix(id)) && !strings.HasPrefix(key, export.ManifestPrefix(id)) {
				stored = append(stored, key)
			}
		}
		uploads := 0
		check.Must(s.t, s.store().Uploads(s.t.Context(), func(objects.Upload) error { uploads++; return nil }))
		return slices.Equal(stored, want) && uploads == 0
	})
}
