//go:build long

package e2e

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// patientsVariable sets a larger population for the outages: 3300 patients are a million resources.
const patientsVariable = "SLUICE_TEST_PATIENTS"

// fingerprints streams the files and returns the fingerprint of each type.
func (s *stack) fingerprints(items []fileItem) map[string]expect.Fingerprint {
	s.t.Helper()
	byType := map[string]expect.Fingerprint{}
	for _, item := range items {
		resp := s.request(http.MethodGet, item.URL, "everything", nil)
		if resp.StatusCode != http.StatusOK {
			s.t.Fatalf("file: %s", resp.Status)
		}
		sum := byType[item.Type]
		lines := bufio.NewReaderSize(resp.Body, 1<<20)
		count := 0
		for {
			line, err := lines.ReadSlice('\n')
			if err == io.EOF && len(line) == 0 { //nolint:errorlint // as readers return it
				break
			}
			check.Must(s.t, err)
			sum.Add(line)
			count++
		}
		if count != item.Count {
			s.t.Errorf("%s: %d lines, want %d as in the manifest", item.URL, count, item.Count)
		}
		byType[item.Type] = sum
		_ = resp.Body.Close()
	}
	return byType
}

// TestOutagesInTheMiddleOfAPopulation kills PostgreSQL, the API, and then a worker together with both, each in the middle
// of an export. The output of each export equals that of the undisturbed one.
func TestOutagesInTheMiddleOfAPopulation(t *testing.T) { // pitfalls 8, 11, 13
	patients := 150
	if text := os.Getenv(patientsVariable); text != "" {
		var err error
		patients, err = strconv.Atoi(text)
		check.Must(t, err)
	}
	data := generated(t, patients)
	server := testenv.PostgresServer(t)
	loading := time.Now()
	sluice(t, 0, "load", "--database", server.URL(), data)
	t.Logf("loaded in %.1f s", time.Since(loading).Seconds())
	proxy := objectstest.NewProxy(t, testenv.ObjectStore(t).Endpoint)
	s := deploy(t, setup{
		data: data, database: server.URL(), directory: server.URL(), endpoint: proxy.Endpoint(),
		worker:    []string{"SLUICE_FILE_BYTES=" + strconv.Itoa(60_000*patients), "SLUICE_WORKER_CONCURRENCY=2"},
		scheduler: []string{"SLUICE_SWEEP_EVERY=1s", "SLUICE_SWEEP_GRACE=0s"},
	})
	workers := []*service{s.startWorker(), s.startWorker()}
	const most = 5 * time.Minute
	began := time.Now()
	undisturbed := s.fingerprints(s.wait(s.kickoff("all", ""), most).Output)
	t.Logf("undisturbed: exported and downloaded in %.1f s: %v", time.Since(began).Seconds(), undisturbed["Observation"].Count)
	resources := 0
	for _, sum := range undisturbed {
		resources += sum.Count
	}
	t.Logf("%d resources", resources)

	for _, outage := range []struct {
		name     string
		kill     func()
		mend     func()
		affected string // log message of a worker
	}{
		{"PostgreSQL", server.Kill, server.Start, "unit waits for an unavailable dependency"},
		{"the API", func() { s.api.Kill() }, s.restartAPI, ""},
		{"everything", func() {
			holder(t, workers).Kill()
			server.Kill()
			s.api.Kill()
		}, func() {
			server.Start()
			s.restartAPI()
		}, ""},
	} {
		t.Run(outage.name, func(t *testing.T) {
			for _, w := range workers { // the logs of the new ones only cover the next job
				w.stop()
			}
			workers = []*service{s.startWorker(), s.startWorker()}
			for _, w := range workers {
				w.ready()
			}
			g := holdObservations(proxy, 2)
			began := time.Now()
			status := s.kickoff("all", "")
			g.wait(t)
			outage.kill()
			close(g.release)
			if outage.affected != "" {
				check.Eventually(t, time.Minute, "a unit meets the outage", func() bool {
					for _, w := range workers {
						if _, met := w.Find(func(e map[string]any) bool { return e["msg"] == outage.affected }); met {
							return true
						}
					}
					return false
				})
			}
			outage.mend()
			m := s.wait(status, most)
			t.Logf("finished %.1f s after the kick-off", time.Since(began).Seconds())
			if got := s.fingerprints(m.Output); !reflect.DeepEqual(got, undisturbed) {
				t.Errorf("got %v\nwant %v", got, undisturbed)
			}
			if len(m.Error) != 0 {
				t.Errorf("errors: %v", m.Error)
			}
			s.onlyManifestIsStored(status, m)
		})
	}
	for _, w := range workers {
		w.stop()
	}
	t.Run("a storm of SIGTERM", func(t *testing.T) { storm(t, s, proxy, patients, undisturbed) })
}

// With the default settings, 40 s are longer than the silence of a lost unit and than a lease of Asynq.
func TestRedisIsAwayFor40Seconds(t *testing.T) { // pitfalls 8, 13, 27
	t.Parallel()
	exportThroughAnOutageOfRedis(t, 40*time.Second, 20*time.Second, false)
}

// TestALoadKilledAtAnyInstant kills sluice load repeatedly, later each time, until one succeeds. The store never shows a
// partial load, and finally shows all of it.
func TestALoadKilledAtAnyInstant(t *testing.T) {
	data := generated(t, 60)
	database := testenv.Postgres(t)
	s := deploy(t, setup{data: data, database: database, workers: 1})
	first := time.Now()
	reference := testenv.Postgres(t)
	sluice(t, 0, "load", "--database", reference, data)
	took := time.Since(first)
	want := deploy(t, setup{data: data, database: reference, workers: 1})
	whole := want.fingerprints(want.wait(want.kickoff("all", ""), time.Minute).Output)

	killed := 0
	for delay := took / 8; ; delay += took / 8 {
		load := exec.CommandContext(t.Context(), filepath.Join(binaries, "sluice"), "load", "--database", database, data)
		var said strings.Builder
		load.Stderr = &said
		check.Must(t, load.Start())
		kill := time.AfterFunc(delay, func() { _ = load.Process.Kill() })
		err := load.Wait()
		kill.Stop()
		if err == nil {
			break
		}
		// It was killed, or waits for the session of the previous load to end.
		killed++
		if killed > 100 {
			t.Fatalf("no load succeeds: %s", said.String())
		}
	}
	if killed == 0 {
		t.Error("no load was killed")
	}
	t.Logf("%d loads were killed", killed)
	if got := s.fingerprints(s.wait(s.kickoff("all", ""), time.Minute).Output); !reflect.DeepEqual(got, whole) {
		t.Errorf("got %v\nwant %v", got, whole)
	}
	if again := sluice(t, 0, "load", "--database", database, data); !strings.Contains(again, "0 added, 0 replaced") {
		t.Errorf("loaded again: %s", again)
	}
}
