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
	"github.com/sluice-fhir/sluice/pkg/redishook"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

const (
	// unitTimeout ends a unit that hangs. It is far above what a unit takes: silence is found by heartbeats.
	unitTimeout = 2 * time.Hour
	// upkeepTimeout ends a tick or a purge that hangs; the next tick goes on where it stopped.
	upkeepTimeout = 15 * time.Minute
	// manyRetries keeps Asynq from archiving a task, which would keep its id reserved.
	manyRetries = 1000
)

// Client enqueues. Use Open.
type Client struct {
	redis     redis.UniversalClient
	client    *asynq.Client
	inspector *asynq.Inspector
	slots     slots
}

// Open returns a client on the Redis at the URL. It makes no connection yet.
func Open(url string, options ...Option) (*Client, error) {
	given, err := connection(url, options...)
	if err != nil {
		return nil, err
	}
	// The connections are ours and not Asynq's: its own ping takes no context, and readiness cannot wait.
	connections, ok := given.redis.MakeRedisClient().(redis.UniversalClient)
	if !ok {
		return nil, errors.New("the Redis URL leads to an unknown kind of client")
	}
	redishook.Observe(connections, given.observe)
	return &Client{
		redis:     connections,
		client:    asynq.NewClientFromRedisClient(connections),
		inspector: asynq.NewInspectorFromRedisClient(connections),
	}, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.redis.Close() }

// Ping reports whether the queue's Redis answers. It ends soon after its context.
func (c *Client) Ping(ctx context.Context) error {
	if err := c.redis.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping queue: %w: %w", export.ErrUnavailable, err)
	}
	return nil
}

// ErrTaken says that a task of this unit and fence has left the queue and is not done: a worker has it, or it waits to
// be delivered again.
var ErrTaken = errors.New("the task was taken already")

// EnqueueUnit puts the unit's task in its queue. It is idempotent: a task that is there already stays as it is, and one
// that is there no more but not done is ErrTaken, which only a rescue needs to care about.
func (c *Client) EnqueueUnit(ctx context.Context, task Task) error {
	kind, known := unitTypes[task.Kind]
	if !known {
		return fmt.Errorf("enqueue unit %s of job %s: unknown kind %q", task.Unit, task.Job, task.Kind)
	}
	payload, err := task.payload()
	if err != nil {
		return fmt.Errorf("enqueue unit %s of job %s: %w", task.Unit, task.Job, err)
	}
	err = c.enqueue(ctx, asynq.NewTask(kind, payload), task.queue(), task.id(),
		asynq.Timeout(unitTimeout), asynq.ProcessIn(task.Delay))
	if err != nil {
		return fmt.Errorf("enqueue unit %s of job %s: %w", task.Unit, task.Job, err)
	}
	return nil
}

// EnqueuePurge asks for the job to be purged soon. It is idempotent; the scheduler's sweep purges in any case.
func (c *Client) EnqueuePurge(ctx context.Context, id export.JobID) error {
	return c.enqueuePurge(ctx, id, "purge:"+string(id))
}

func (c *Client) enqueuePurge(ctx context.Context, id export.JobID, taskID string) error {
	payload, err := proto.Marshal(&sluicev1.PurgeTask{JobId: string(id)})
	if err == nil {
		err = c.enqueue(ctx, asynq.NewTask(purgeType, payload), upkeepQueue, taskID,
			asynq.Timeout(upkeepTimeout))
	}
	if err != nil && !errors.Is(err, ErrTaken) {
		return fmt.Errorf("enqueue purge of job %s: %w", id, err)
	}
	return nil
}

// EnqueueLatePurge asks for another purge after one that may have begun: the unit of an ended job has only now stopped
// writing. Its id is its own, since the first purge may hold the other.
func (c *Client) EnqueueLatePurge(ctx context.Context, task Task) error {
	return c.enqueuePurge(ctx, task.Job, "purge:"+task.id())
}

// EnqueueTick asks for one run of a periodic duty. The bucket is the start of the tick's interval: of all schedulers
// that tick in the same interval one gets through, and the id stays taken until the interval is over.
func (c *Client) EnqueueTick(ctx context.Context, duty string, bucket time.Time, interval time.Duration) error {
	return c.enqueueTick(ctx, upkeepType, upkeepQueue, duty, bucket, interval)
}

// EnqueueWatch is EnqueueTick for a duty that must never wait behind one that is slow.
func (c *Client) EnqueueWatch(ctx context.Context, duty string, bucket time.Time, interval time.Duration) error {
	return c.enqueueTick(ctx, watchType, watchQueue, duty, bucket, interval)
}

func (c *Client) enqueueTick(
	ctx context.Context, kind, queue, duty string, bucket time.Time, interval time.Duration,
) error {
	payload, err := proto.Marshal(&sluicev1.UpkeepTask{Kind: duty, Bucket: bucket.Unix()})
	if err == nil {
		id := fmt.Sprintf("%s:%d", duty, bucket.UnixMilli())
		_, err = c.client.EnqueueContext(ctx, asynq.NewTask(kind, payload), asynq.Queue(queue),
			asynq.TaskID(id), asynq.Timeout(upkeepTimeout), asynq.MaxRetry(0), asynq.Retention(2*interval))
		if errors.Is(err, asynq.ErrTaskIDConflict) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("enqueue %s tick: %w: %w", duty, export.ErrUnavailable, err)
	}
	return nil
}

func (c *Client) enqueue(ctx context.Context, task *asynq.Task, queue, id string, opts ...asynq.Option) error {
	opts = append(opts, asynq.Queue(queue), asynq.TaskID(id), asynq.MaxRetry(manyRetries))
	_, err := c.client.EnqueueContext(ctx, task, opts...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		taken, infoErr := c.inspector.GetTaskInfo(queue, id)
		if errors.Is(infoErr, asynq.ErrTaskNotFound) {
			return nil // done in this very moment
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
		// An archived task only keeps the id from being used: nothing would ever run it.
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
