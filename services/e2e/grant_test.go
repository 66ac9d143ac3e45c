//go:build long

package e2e

import (
	"fmt"
	"iter"
	"slices"
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
		apiPeak    = 64 // MiB
		workerPeak = 128
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
		peak := process.PeakMemory()
		t.Logf("%s: at most %.0f MiB", process.Name(), peak)
		if limit := map[string]float64{"api": apiPeak, "worker": workerPeak}[process.Name()]; limit > 0 && (peak > limit || peak == 0) {
			t.Errorf("%s used %.0f MiB, want at most %.0f", process.Name(), peak, limit)
		}
	}
}
