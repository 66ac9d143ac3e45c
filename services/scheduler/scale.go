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

// scale is the answer of GET /scale: what an autoscaler needs to know. Fields are only ever added. The first ones are
// about units, over both of their queues.
type scale struct {
	Pending   int     `json:"pending"`                // units that any worker may take now
	Active    int     `json:"active"`                 // units that a worker has
	Scheduled int     `json:"scheduled"`              // units that are not to be taken before some time
	Oldest    float64 `json:"oldest_waiting_seconds"` // since the oldest pending unit could be taken first; 0: none waits
	Workers   int     `json:"workers"`                // that take units; one that stops does not
	Busy      int     `json:"busy_workers"`           // of these, that have a long unit
	Slots     int     `json:"slots"`                  // long units that all workers can do at once

	Queues map[string]scaleQueue `json:"queues"` // by name, also those of the schedulers
}

type scaleQueue struct {
	Pending   int     `json:"pending"`
	Active    int     `json:"active"`
	Scheduled int     `json:"scheduled"`
	Retry     int     `json:"retry"`
	Oldest    float64 `json:"oldest_waiting_seconds"`
}

// queues is the part of queue.Client that scaleHandler asks.
type queues interface {
	Waiting(ctx context.Context) ([]queue.Waiting, error)
	Workers(ctx context.Context) (queue.Workers, error)
}

// scaleTimeout bounds a look at the queues. An autoscaler that gets no answer keeps the workers that there are.
const scaleTimeout = 3 * time.Second

// scaleHandler answers GET /scale, with 503 when Redis does not.
func scaleHandler(from queues, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), scaleTimeout)
		defer cancel()
		answer, err := lookAtQueues(ctx, from)
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

func lookAtQueues(ctx context.Context, from queues) (scale, error) {
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
