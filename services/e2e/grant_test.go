//go:build long

package e2e

import (
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token/development"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// TestAGrantOfThreeMillionPatients exports a group of three million members, all of which the owner's grant lists. The data
// holds a few of them.
func TestAGrantOfThreeMillionPatients(t *testing.T) {
	const (
		listed     = 3_000_000
		apiPeak    = 64 << 20
		workerPeak = 128 << 20
	)
	data := generated(t, 20)
	p := expect.Read(t, data)
	people := p.Members("all")
	database := testenv.Postgres(t)
	if _, err := pgdb.Migrate(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	s := deploy(t, setup{data: data, directory: database, workers: 1})

	pool, err := pgdir.Open(t.Context(), pgdb.Config{URL: database, Connections: 2})
	check.Must(t, err)
	defer pool.Close()
	ids := func() iter.Seq2[string, error] {
		return func(yield func(string, error) bool) {
			for id := range people {
				if !yield(id, nil) {
					return
				}
			}
			for n := range listed - len(people) {
				if !yield(fmt.Sprintf("nowhere-%07d", n), nil) {
					return
				}
			}
		}
	}
	_, err = pgdir.NewGroups(pool, time.Now).Create(t.Context(), "population", ids())
	check.Must(t, err)
	check.Must(t, pgdir.NewAccess(pool).Set(t.Context(), directory.GrantEntry{
		Owner: export.Owner{Issuer: development.IssuerName, Subject: "everything"},
		Types: directory.NameList{All: true}, Groups: directory.NameList{All: true},
	}, ids()))

	began := time.Now()
	status := s.kickoff("population", "?_type=Patient,Condition")
	t.Logf("the kick-off took %s", time.Since(began))
	got := s.lines(s.wait(status, 10*time.Minute).Output)
	t.Logf("the export took %s", time.Since(began))
	want := p.Export(people)
	for typ := range want {
		if !slices.Contains([]string{"Patient", "Condition"}, typ) {
			delete(want, typ)
		}
	}
	expect.SameLines(t, "the export", got, want)

	for _, process := range s.processes {
		peak := process.peakMemory()
		t.Logf("%s: at most %d MiB", process.name, peak>>20)
		if limit := map[string]int64{"api": apiPeak, "worker": workerPeak}[process.name]; limit > 0 && peak > limit {
			t.Errorf("%s used %d MiB, more than %d", process.name, peak>>20, limit>>20)
		}
	}
}

// peakMemory returns the peak of the resident set in bytes.
func (p *process) peakMemory() int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	check.Must(p.t, err)
	for line := range strings.Lines(string(status)) {
		if text, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 64)
			check.Must(p.t, err)
			return kib << 10
		}
	}
	p.t.Fatalf("the peak of %s is not reported", p.name)
	panic("unreachable")
}
