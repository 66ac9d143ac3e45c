package jobstore

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// An answer that nothing is there, and a script that the server has yet to be told, are no errors of Redis; one that is
// not there is.
func TestCommandsAreObserved(t *testing.T) {
	var mu sync.Mutex
	calls, failed := map[string]int{}, map[string]int{}
	observe := func(operation string, _ time.Time, err error) {
		mu.Lock()
		defer mu.Unlock()
		calls[operation]++
		if err != nil {
			failed[operation]++
		}
	}
	url := testenv.Redis(t)
	s, err := Open(url, nil, WithObserver(observe))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	job := export.Job{ID: export.NewJobID(), State: export.Scheduled, Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	if err := s.Create(ctx, job, export.FirstUnit()); err != nil {
		t.Fatal(err)
	}
	read, err := s.Job(ctx, job.ID)
	if err != nil || read.Trace != job.Trace {
		t.Errorf("trace %q, %v", read.Trace, err)
	}
	lease, err := s.Claim(ctx, job.ID, export.PlanUnit, export.KindPlan, 1)
	if err != nil || lease.Trace != job.Trace {
		t.Errorf("lease of trace %q, %v", lease.Trace, err)
	}
	entry := []Entry{{ID: job.ID}, {ID: export.NewJobID()}} // of the second there is nothing
	states, err := s.States(ctx, entry)
	if err != nil || !slices.Equal(states, []export.State{export.Planning, ""}) {
		t.Errorf("states %v, %v", states, err)
	}
	standings, err := s.Standings(ctx, entry)
	if err != nil || standings[0].State != export.Planning || standings[0].Open != 1 || standings[1] != (Standing{ID: entry[1].ID}) {
		t.Errorf("standings %+v, %v", standings, err)
	}
	if err := s.Ping(ctx); err != nil {
		t.Error(err)
	}
	mu.Lock()
	if calls["script"] < 2 || calls["read"] < 3 || calls["write"] < 1 || calls["probe"] < 1 || len(failed) != 0 {
		t.Errorf("calls %v, failed %v", calls, failed)
	}
	mu.Unlock()

	gone, err := Open("redis://127.0.0.1:1", nil, WithObserver(observe))
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if _, err := gone.Job(ctx, job.ID); err == nil {
		t.Fatal("read without a server")
	}
	mu.Lock()
	defer mu.Unlock()
	if failed["read"] != 1 {
		t.Errorf("failed: %v", failed)
	}
}
