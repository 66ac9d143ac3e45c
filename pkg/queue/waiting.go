package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Waiting is the content of one queue at one moment.
type Waiting struct {
	Queue     string        `json:"queue"`     // its name on the wire
	Units     bool          `json:"-"`         // workers serve it; schedulers serve the others
	Long      bool          `json:"-"`         // it holds long units, which decide how many workers are needed
	Pending   int           `json:"pending"`   // tasks that can be taken now
	Active    int           `json:"active"`    // tasks that a process runs
	Scheduled int           `json:"scheduled"` // delayed tasks, such as units that wait for a dependency
	Retry     int           `json:"retry"`     // tasks whose outcome could not be recorded
	Oldest    time.Duration `json:"-"`         // how long the oldest pending task has waited; 0: there is none
}

// oldestLooked is how many tasks at the head of a queue are read to find the oldest. Asynq puts unfinished tasks of a
// stopped server there, without the time at which they became pending.
const oldestLooked = 8

// listKey is the Redis key of one of a queue's collections, as Asynq names it: pending and active are lists, scheduled
// and retry sorted sets. Autoscalers read them too (k8s/base/worker-scaledobject.yaml).
func listKey(queue, collection string) string { return "asynq:{" + queue + "}:" + collection }

// Waiting returns the content of each queue in a fixed number of reads. Errors are export.ErrUnavailable.
func (c *Client) Waiting(ctx context.Context) ([]Waiting, error) {
	all := []Waiting{
		{Queue: expressQueue, Units: true}, {Queue: bulkQueue, Units: true, Long: true},
		{Queue: maintenanceQueue}, {Queue: rescueQueue},
	}
	counts := make([][4]*redis.IntCmd, len(all))
	heads := make([]*redis.StringSliceCmd, len(all))
	_, err := c.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, w := range all {
			counts[i] = [4]*redis.IntCmd{
				pipe.LLen(ctx, listKey(w.Queue, "pending")), pipe.LLen(ctx, listKey(w.Queue, "active")),
				pipe.ZCard(ctx, listKey(w.Queue, "scheduled")), pipe.ZCard(ctx, listKey(w.Queue, "retry")),
			}
			heads[i] = pipe.LRange(ctx, listKey(w.Queue, "pending"), -oldestLooked, -1)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count waiting tasks: %w: %w", export.ErrUnavailable, err)
	}
	since := make([][]*redis.StringCmd, len(all))
	_, err = c.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, w := range all {
			for _, id := range heads[i].Val() {
				since[i] = append(since[i], pipe.HGet(ctx, listKey(w.Queue, "t:"+id), "pending_since"))
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) { // a task may be taken meanwhile
		return nil, fmt.Errorf("read the age of waiting tasks: %w: %w", export.ErrUnavailable, err)
	}
	now := time.Now()
	for i := range all {
		w := &all[i]
		for n, into := range []*int{&w.Pending, &w.Active, &w.Scheduled, &w.Retry} {
			*into = int(counts[i][n].Val())
		}
		for _, cmd := range since[i] {
			text, err := cmd.Result()
			if errors.Is(err, redis.Nil) {
				continue
			}
			nanoseconds, parseErr := strconv.ParseInt(text, 10, 64)
			if err = errors.Join(err, parseErr); err != nil {
				return nil, fmt.Errorf("read the age of waiting tasks: %w: %w", export.ErrUnavailable, err)
			}
			w.Oldest = max(w.Oldest, now.Sub(time.Unix(0, nanoseconds)))
		}
	}
	return all, nil
}

// Workers counts the processes that serve long units.
type Workers struct {
	Alive int // processes that take units; stopping ones do not count
	Busy  int // those of them with a long unit
	Slots int // long units that they can run at once
}

// Workers counts the workers by their heartbeats, which come every 5 s; a killed one counts for 10 s more. It publishes the
// slots for Outstanding. Errors are export.ErrUnavailable. The Inspector ignores ctx; it times out after a few seconds.
func (c *Client) Workers(ctx context.Context) (Workers, error) {
	if err := ctx.Err(); err != nil {
		return Workers{}, err
	}
	servers, err := c.inspector.Servers()
	if err != nil {
		return Workers{}, fmt.Errorf("count workers: %w: %w", export.ErrUnavailable, err)
	}
	var workers Workers
	for _, server := range servers {
		if _, long := server.Queues[bulkQueue]; !long || server.Status != "active" {
			continue
		}
		workers.Alive++
		workers.Slots += server.Concurrency
		for _, active := range server.ActiveWorkers {
			if active.Queue == bulkQueue {
				workers.Busy++
				break
			}
		}
	}
	if err := c.redis.Set(ctx, slotsKey, workers.Slots, slotsLife).Err(); err != nil {
		return Workers{}, fmt.Errorf("publish the slots of the workers: %w: %w", export.ErrUnavailable, err)
	}
	return workers, nil
}
