package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func askScale(t *testing.T, url string) *httptest.ResponseRecorder {
	t.Helper()
	client, err := queue.Open(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	if url != nowhere {
		for unit, kind := range map[export.UnitID]export.Kind{
			"plan": export.KindPlan, "Claim-00001": export.KindExport, "Claim-00002": export.KindExport,
		} {
			task := queue.Task{Kind: kind, Job: "abcdefghijklmnopqrstuvwxyz", Unit: unit, Fence: 1}
			if err := client.EnqueueUnit(t.Context(), task); err != nil {
				t.Fatal(err)
			}
		}
		if err := client.EnqueuePurge(t.Context(), "abcdefghijklmnopqrstuvwxyz"); err != nil {
			t.Fatal(err)
		}
	}
	recorder := httptest.NewRecorder()
	handler := scaleHandler(client, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/scale", nil))
	return recorder
}

const nowhere = "redis://127.0.0.1:1"

// k8s/base/worker-scaledobject.yaml reads these names.
func TestScaleTellsWhatWaits(t *testing.T) {
	recorder := askScale(t, testenv.Redis(t))
	var got map[string]any
	if err := json.NewDecoder(recorder.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"pending": 3, "active": 0, "scheduled": 0, "workers": 0, "busy_workers": 0, "slots": 0,
	} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if oldest, _ := got["oldest_waiting_seconds"].(float64); oldest <= 0 || oldest > 60 {
		t.Errorf("oldest: %v", got["oldest_waiting_seconds"])
	}
	queues, _ := got["queues"].(map[string]any)
	for name, want := range map[string]float64{"bulk": 2, "steering": 1, "upkeep": 1, "watch": 0} {
		held, _ := queues[name].(map[string]any)
		if held["pending"] != want {
			t.Errorf("queue %s: %v", name, held)
		}
	}
}

func TestScaleSaysThatItCannotTell(t *testing.T) {
	recorder := askScale(t, nowhere)
	if recorder.Code != http.StatusServiceUnavailable || recorder.Body.String() != `{"status":"unavailable"}`+"\n" {
		t.Errorf("got %d %s", recorder.Code, recorder.Body)
	}
}
