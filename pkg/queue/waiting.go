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

// Waiting is what one queue holds, at one moment.
type Waiting struct {
	Queue     string        // its name, which is on the wire and never changes
	Units     bool          // workers serve it; the others are the schedulers'
	Long      bool          // its units are long: they alone decide how many workers are of use
	Pending   int           // tasks that anybody may take now
	Active    int           // tasks that somebody has
	Scheduled int           // tasks that are not to be taken before some time, such as units that wait for what is down
	Retry     int           // tasks whose outcome could not be recorded and that will be delivered again
	Oldest    time.Duration // since the oldest pending task could be taken first; 0: there is none
}

// oldestLooked is how many tasks at the head of a queue are looked at for the oldest one. Asynq puts what a stopping
// server did not finish there, without the time since when it waits.
const oldestLooked = 8

// listKey is the Redis key of one of a queue's collections, as Asynq names it: pending and active are lists, scheduled
// and retry sorted sets. Autoscalers read them too (k8s/base/worker-scaledobject.yaml).
func listKey(queue, collection string) string { return "asynq:{" + queue + "}:" + collection }

// Waiting returns what each queue holds: a fixed number of reads, however much that is. The counts are of one moment.
// An error is export.ErrUnavailable.
func (c *Client) Waiting(ctx context.Context) ([]Waiting, error) {
	all := []Waiting{
		{Queue: steeringQueue, Units: true}, {Queue: bulkQueue, Units: true, Long: true},
		{Queue: upkeepQueue}, {Queue: watchQueue},
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
		return nil, fmt.Errorf("count what waits: %w: %w", export.ErrUnavailable, err)
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
	if err != nil && !errors.Is(err, redis.Nil) { // a task that was taken meanwhile waits no more
		return nil, fmt.Errorf("age what waits: %w: %w", export.ErrUnavailable, err)
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
				return nil, fmt.Errorf("age what waits: %w: %w", export.ErrUnavailable, err)
			}
			w.Oldest = max(w.Oldest, now.Sub(time.Unix(0, nanoseconds)))
		}
	}
	return all, nil
}

// Workers says how many processes serve long units.
type Workers struct {
	Alive int // that take units; one that stops does not
	Busy  int // of these, that have a long unit now
	Slots int // long units that those alive can do at once
}

// Workers counts the workers by what they say of themselves every 5 s; one that was killed counts for 10 s more.
// An error is export.ErrUnavailable.
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
	return workers, nil
}
