package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

const (
	// unitTimeout ends a unit that hangs. It is far above what a unit takes: silence is found by heartbeats.
	unitTimeout = 2 * time.Hour
	// passTimeout ends a pass or a purge that hangs; the next one continues.
	passTimeout = 15 * time.Minute
	// manyRetries keeps Asynq from archiving a task, which would keep its id reserved.
	manyRetries = 1000
)

// Client enqueues. Use Open.
type Client struct {
	redis     *redis.Client
	client    *asynq.Client
	inspector *asynq.Inspector
	slots     slots
}

// Open returns a client on the Redis at the URL. It makes no connection yet.
func Open(url string, options ...redisclient.Option) (*Client, error) {
	// Asynq does not open its own connections: its ping takes no context, and a readiness check must end soon.
	client, err := redisclient.Open(url, options...)
	if err != nil {
		return nil, err
	}
	return &Client{
		redis: client, client: asynq.NewClientFromRedisClient(client), inspector: asynq.NewInspectorFromRedisClient(client),
	}, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.redis.Close() }

// Ping returns an error unless the queue's Redis answers. It ends soon after its context.
func (c *Client) Ping(ctx context.Context) error {
	return redisclient.Unavailable("ping queue", c.redis.Ping(ctx).Err())
}

// ErrTaken means that a task of this unit and fence has left the queue and is not done: a worker has it, or Asynq retries
// it later.
var ErrTaken = errors.New("the task was taken already")

// EnqueueUnit puts the unit's task in its queue. It is idempotent: a queued task stays as it is. ErrTaken matters only to
// a rescue.
func (c *Client) EnqueueUnit(ctx context.Context, task Task) error {
	kind, known := unitTypes[task.Kind]
	if !known {
		return fmt.Errorf("enqueue unit %s of job %s: unknown kind %q", task.Unit, task.Job, task.Kind)
	}
	payload, err := task.payload()
	if err != nil {
		return fmt.Errorf("enqueue unit %s of job %s: %w", task.Unit, task.Job, err)
	}
	opts := []asynq.Option{asynq.Timeout(unitTimeout)}
	if task.Delay > 0 {
		now, err := c.now(ctx)
		if err != nil {
			return fmt.Errorf("enqueue unit %s of job %s: %w", task.Unit, task.Job, err)
		}
		opts = append(opts, asynq.ProcessAt(now.Add(task.Delay)))
	}
	if err := c.enqueue(ctx, asynq.NewTask(kind, payload), task.queue(), task.id(), opts...); err != nil {
		return fmt.Errorf("enqueue unit %s of job %s: %w", task.Unit, task.Job, err)
	}
	return nil
}

// now is the time of Redis. A delay that is counted from a clock that is ahead would be longer by as much.
func (c *Client) now(ctx context.Context) (time.Time, error) {
	now, err := c.redis.Time(ctx).Result()
	return now, redisclient.Unavailable("read the time of redis", err)
}

// Queued reports for each task whether it waits in its queue, now or delayed. It is one round trip: pass at most a few
// hundred.
func (c *Client) Queued(ctx context.Context, tasks []Task) ([]bool, error) {
	states := make([]*redis.StringCmd, len(tasks))
	_, err := c.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, task := range tasks {
			states[i] = pipe.HGet(ctx, listKey(task.queue(), "t:"+task.id()), "state")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, redisclient.Unavailable("look for tasks", err)
	}
	queued := make([]bool, len(tasks))
	for i, state := range states {
		queued[i] = state.Val() == "pending" || state.Val() == "scheduled" // any other one is enqueued again, which decides
	}
	return queued, nil
}

// EnqueuePurge enqueues the purge of a job. It is idempotent while the purge is queued or running.
func (c *Client) EnqueuePurge(ctx context.Context, id export.JobID) error {
	return c.enqueuePurge(ctx, id, "purge:"+string(id))
}

// latePurgeEvery is the interval within which late purges of a job share one task.
const latePurgeEvery = 5 * time.Second

// EnqueueLatePurge enqueues another purge of an ended job, for a unit that was still writing when the job ended: the
// first purge may have ended, or have passed the unit's prefix. Requests within the same interval share one task, which
// runs at its end.
func (c *Client) EnqueueLatePurge(ctx context.Context, id export.JobID) error {
	now, err := c.now(ctx)
	if err != nil {
		return fmt.Errorf("enqueue purge of job %s: %w", id, err)
	}
	due := now.Truncate(latePurgeEvery).Add(latePurgeEvery)
	return c.enqueuePurge(ctx, id, fmt.Sprintf("purge:%s:%d", id, due.Unix()), asynq.ProcessAt(due))
}

func (c *Client) enqueuePurge(ctx context.Context, id export.JobID, taskID string, opts ...asynq.Option) error {
	payload, err := proto.Marshal(&sluicev1.PurgeTask{JobId: string(id)})
	if err == nil {
		err = c.enqueue(ctx, asynq.NewTask(purgeType, payload), maintenanceQueue, taskID,
			append(opts, asynq.Timeout(passTimeout))...)
	}
	if err != nil && !errors.Is(err, ErrTaken) {
		return fmt.Errorf("enqueue purge of job %s: %w", id, err)
	}
	return nil
}

// EnqueuePass enqueues one pass of the scheduler's periodic work. bucket is the start of the pass's interval: only one of
// all the schedulers that enqueue it in the same interval succeeds, and the id stays taken until the interval is over.
func (c *Client) EnqueuePass(ctx context.Context, pass string, bucket time.Time, interval time.Duration) error {
	return c.enqueuePass(ctx, recurringType, maintenanceQueue, pass, bucket, interval)
}

// EnqueueRescue is EnqueuePass for the rescue, in a queue of its own: it must never wait behind a slow pass.
func (c *Client) EnqueueRescue(ctx context.Context, pass string, bucket time.Time, interval time.Duration) error {
	return c.enqueuePass(ctx, rescueType, rescueQueue, pass, bucket, interval)
}

func (c *Client) enqueuePass(
	ctx context.Context, kind, queue, pass string, bucket time.Time, interval time.Duration,
) error {
	payload, err := proto.Marshal(&sluicev1.UpkeepTask{Kind: pass, Bucket: bucket.Unix()})
	if err == nil {
		id := fmt.Sprintf("%s:%d", pass, bucket.UnixMilli())
		_, err = c.client.EnqueueContext(ctx, asynq.NewTask(kind, payload), asynq.Queue(queue),
			asynq.TaskID(id), asynq.Timeout(passTimeout), asynq.MaxRetry(0), asynq.Retention(2*interval))
		if errors.Is(err, asynq.ErrTaskIDConflict) {
			return nil
		}
	}
	return redisclient.Unavailable("enqueue the pass "+pass, err)
}

func (c *Client) enqueue(ctx context.Context, task *asynq.Task, queue, id string, opts ...asynq.Option) error {
	opts = append(opts, asynq.Queue(queue), asynq.TaskID(id), asynq.MaxRetry(manyRetries))
	_, err := c.client.EnqueueContext(ctx, task, opts...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		taken, infoErr := c.inspector.GetTaskInfo(queue, id)
		if errors.Is(infoErr, asynq.ErrTaskNotFound) {
			return nil // it has completed meanwhile
		}
		if infoErr != nil {
			return fmt.Errorf("%w: %w", export.ErrUnavailable, infoErr)
		}
		switch taken.State {
		case asynq.TaskStateArchived:
		case asynq.TaskStateActive, asynq.TaskStateRetry:
			return ErrTaken
		default:
			return nil // queued
		}
		// An archived task never runs and only blocks its id.
		if err := c.inspector.DeleteTask(queue, id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
			return fmt.Errorf("%w: %w", export.ErrUnavailable, err)
		}
		_, err = c.client.EnqueueContext(ctx, task, opts...)
	}
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fmt.Errorf("%w: %w", export.ErrUnavailable, err)
	}
	return nil
}
