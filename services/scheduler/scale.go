package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/queue"
)

// scale is the response of GET /scale, for autoscalers. Fields are never removed. Fields outside Queues count units, in
// both of their queues.
type scale struct {
	Pending   int     `json:"pending"`                // units that a worker may take now
	Active    int     `json:"active"`                 // running units
	Scheduled int     `json:"scheduled"`              // units that are due later
	Oldest    float64 `json:"oldest_waiting_seconds"` // age of the oldest pending unit; 0: none is pending
	Workers   int     `json:"workers"`                // workers that take units; stopping ones do not count
	Busy      int     `json:"busy_workers"`           // those of them that run a long unit
	Slots     int     `json:"slots"`                  // long units that all workers can run at once

	Queues map[string]scaleQueue `json:"queues"` // by name, including those of the schedulers
}

type scaleQueue struct {
	Pending   int     `json:"pending"`
	Active    int     `json:"active"`
	Scheduled int     `json:"scheduled"`
	Retry     int     `json:"retry"`
	Oldest    float64 `json:"oldest_waiting_seconds"`
}

// queues is the part of queue.Client that scaleHandler reads.
type queues interface {
	Waiting(ctx context.Context) ([]queue.Waiting, error)
	Workers(ctx context.Context) (queue.Workers, error)
}

// scaleTimeout bounds reading the queues. Without a response an autoscaler keeps the current number of workers.
const scaleTimeout = 3 * time.Second

// scaleHandler serves GET /scale. It responds 503 while Redis is unavailable.
func scaleHandler(from queues, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), scaleTimeout)
		defer cancel()
		answer, err := readScale(ctx, from)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			log.Warn("cannot report queue metrics to the autoscaler", "err", err)
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"status":"unavailable"}` + "\n")) // a client that has gone needs no answer
			return
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
}

func readScale(ctx context.Context, from queues) (scale, error) {
	waiting, err := from.Waiting(ctx)
	if err != nil {
		return scale{}, err
	}
	workers, err := from.Workers(ctx)
	if err != nil {
		return scale{}, err
	}
	answer := scale{
		Workers: workers.Alive, Busy: workers.Busy, Slots: workers.Slots, Queues: map[string]scaleQueue{},
	}
	for _, q := range waiting {
		seconds := math.Round(q.Oldest.Seconds()*1000) / 1000
		answer.Queues[q.Queue] = scaleQueue{
			Pending: q.Pending, Active: q.Active, Scheduled: q.Scheduled, Retry: q.Retry, Oldest: seconds,
		}
		if q.Units {
			answer.Pending += q.Pending
			answer.Active += q.Active
			answer.Scheduled += q.Scheduled
			answer.Oldest = max(answer.Oldest, seconds)
		}
	}
	return answer, nil
}
