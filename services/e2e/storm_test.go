//go:build long

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// seedVariable repeats the choices of an earlier storm.
const seedVariable = "SLUICE_TEST_SEED"

// storm exports everything while, every 3 s, a random one of four workers gets a SIGTERM and another one replaces it. The
// store is slow, and workers hand units back at once, so that each SIGTERM hits units.
func storm(t *testing.T, s *stack, proxy *objectstest.Proxy, patients int, undisturbed map[string]expect.Fingerprint) {
	const (
		many    = 4
		every   = 3 * time.Second
		units   = 140                     // about, of a million resources; a small population has fewer
		slow    = 1800 * time.Millisecond // the store's answer to each file
		atLeast = 5                       // SIGTERMs, so that the test is meaningful
	)
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		check.Must(t, err)
	}
	t.Logf("%s=%d", seedVariable, seed)
	choose := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // it must be reproducible

	proxy.OnReply(func(reply *http.Response) error {
		if r := reply.Request; r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/jobs/") {
			select {
			case <-time.After(slow):
			case <-r.Context().Done():
			}
		}
		return nil
	})
	defer proxy.OnReply(nil)
	start := func() *service {
		return s.startWorker("SLUICE_WORKER_CONCURRENCY=1", "SLUICE_WORKER_EXPRESS=1", "SLUICE_WORKER_DRAIN=100ms",
			fmt.Sprintf("SLUICE_UNIT_BYTES=%d", 410_000*patients/units))
	}
	var all, alive []*service
	for range many {
		alive = append(alive, start())
	}
	all = append(all, alive...)
	for _, w := range alive {
		w.ready()
	}

	began, terms := time.Now(), 0
	status := s.kickoff("all", "")
	next := time.NewTicker(every)
	defer next.Stop()
	var m manifest
	check.Eventually(t, 10*time.Minute, "the export finishes", func() (finished bool) {
		select {
		case <-next.C:
			victim := choose.IntN(many)
			alive[victim].Signal(syscall.SIGTERM)
			alive[victim] = start()
			all = append(all, alive[victim])
			terms++
		default:
		}
		m, finished = s.poll(status)
		return finished
	})
	took := time.Since(began)
	for _, w := range all {
		w.stop()
	}

	if got := s.fingerprints(m.Output); !reflect.DeepEqual(got, undisturbed) {
		t.Errorf("got %v\nwant %v", got, undisturbed)
	}
	if len(m.Error) != 0 {
		t.Errorf("errors: %v", m.Error)
	}
	s.onlyManifestIsStored(status, m)

	done := executionsOf(all)
	t.Logf("%d SIGTERMs in %.1f s to %d workers: %d units, %d executions, %d handed back, others: %v",
		terms, took.Seconds(), len(all), done.units(), done.claimed, done.outcomes["handed_back"], done.others())
	if terms < atLeast {
		t.Errorf("%d SIGTERMs: the export was over too soon to show anything", terms)
	}
	if done.outcomes["handed_back"] == 0 {
		t.Error("no unit was handed back: no SIGTERM hit one")
	}
	done.exact(t)
}

// executions is the record of units in the logs of workers.
type executions struct {
	claimed  int
	settled  map[string]int              // how often each unit, by job and unit, was done
	outcomes map[string]int              // of all executions
	fences   map[string]map[float64]bool // of each unit
}

func executionsOf(workers []*service) executions {
	e := executions{settled: map[string]int{}, outcomes: map[string]int{}, fences: map[string]map[float64]bool{}}
	for _, w := range workers {
		for _, entry := range w.Lines() {
			unit := fmt.Sprint(entry["job_id"], " ", entry["unit"])
			switch entry["msg"] {
			case "unit claimed":
				e.claimed++
				fence, _ := entry["fence"].(float64)
				if e.fences[unit] == nil {
					e.fences[unit] = map[float64]bool{}
				}
				e.fences[unit][fence] = true
			case "unit ended":
				outcome, _ := entry["outcome"].(string)
				e.outcomes[outcome]++
				if outcome == "done" {
					e.settled[unit]++
				}
			}
		}
	}
	return e
}

func (e executions) units() int { return len(e.fences) }

// others counts the outcomes that are neither done nor handed back.
func (e executions) others() map[string]int {
	others := map[string]int{}
	for outcome, count := range e.outcomes {
		if outcome != "done" && outcome != "handed_back" {
			others[outcome] = count
		}
	}
	return others
}

// exact checks that each unit is done once, that every other execution of it was handed back, and that no two had the same fence.
func (e executions) exact(t *testing.T) {
	t.Helper()
	if want := e.units() + e.outcomes["handed_back"]; e.claimed != want {
		t.Errorf("%d executions, want %d units and %d handed back", e.claimed, e.units(), e.outcomes["handed_back"])
	}
	if len(e.others()) != 0 {
		t.Errorf("executions that were neither done nor handed back: %v", e.others())
	}
	fences := 0
	for unit, of := range e.fences {
		fences += len(of)
		if e.settled[unit] != 1 {
			t.Errorf("unit %s was done %d times", unit, e.settled[unit])
		}
	}
	if fences != e.claimed {
		t.Errorf("%d executions had %d fences", e.claimed, fences)
	}
}
