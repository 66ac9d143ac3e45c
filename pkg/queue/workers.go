package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Process is a process that takes tasks: a worker, a scheduler, or both in one.
type Process struct {
	ID       string    // host:pid, by which an operator names it
	Host     string    //
	PID      int       //
	Started  time.Time //
	Slots    int       // tasks at once
	Units    bool      // it takes units
	Upkeep   bool      // it takes duties and purges
	Draining bool      // it takes nothing more
	Obeys    bool      // it listens for orders to drain
	Tasks    []Running // at work, the longest first
}

// Running is a unit at work.
type Running struct {
	Task  Task
	Since time.Time
}

// Keys of drain orders, behind which a process' id stands.
const (
	listensKey = "sluice:worker:listens:" // there while the process listens
	drainKey   = "sluice:worker:drain:"   // the instant of the order, ms of Redis' clock
)

const (
	listenEvery = 2 * time.Second
	listenLife  = 15 * time.Second // a pause of the process, or of Redis, is not taken for its end
	// orderLife is how long an order waits for its process. One that has died does not need it any more, and the next one
	// of its name does not obey what is older than itself.
	orderLife = time.Minute
)

// ProcessID is the id of this process.
func ProcessID() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name of this process: %w", err)
	}
	return processID(host, os.Getpid()), nil
}

func processID(host string, pid int) string { return host + ":" + strconv.Itoa(pid) }

// Processes lists the processes that take tasks and have been heard of in the last ten seconds, the oldest first. Of the
// ends of the connection Asynq's Inspector takes no context: it gives up after some seconds.
func (c *Client) Processes(ctx context.Context) ([]Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	servers, err := c.inspector.Servers()
	if err != nil {
		return nil, fmt.Errorf("list workers: %w: %w", export.ErrUnavailable, err)
	}
	found := map[string]*Process{}
	for _, server := range servers {
		id := processID(server.Host, server.PID)
		process := found[id]
		if process == nil {
			process = &Process{ID: id, Host: server.Host, PID: server.PID, Started: server.Started.UTC()}
			found[id] = process
		}
		process.take(server)
	}
	list := make([]Process, 0, len(found))
	for _, process := range found {
		slices.SortFunc(process.Tasks, func(a, b Running) int { return a.Since.Compare(b.Since) })
		n, err := c.redis.Exists(ctx, listensKey+process.ID).Result()
		if err != nil {
			return nil, fmt.Errorf("list workers: %w: %w", export.ErrUnavailable, err)
		}
		process.Obeys = n > 0
		list = append(list, *process)
	}
	slices.SortFunc(list, func(a, b Process) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// take adds one of the process' servers: it has one for the express lane beside that for everything.
func (p *Process) take(server *asynq.ServerInfo) {
	if server.Started.Before(p.Started) {
		p.Started = server.Started.UTC()
	}
	p.Slots += server.Concurrency
	p.Draining = p.Draining || server.Status != "active"
	for name := range server.Queues {
		p.Units = p.Units || name == steeringQueue || name == bulkQueue
		p.Upkeep = p.Upkeep || name == upkeepQueue || name == watchQueue
	}
	for _, at := range server.ActiveWorkers {
		// What cannot be read is of a later version: it is at work all the same, on nothing that we can name.
		if task, err := decodeTask(at.TaskPayload); err == nil && slices.Contains([]string{steeringQueue, bulkQueue}, at.Queue) {
			p.Tasks = append(p.Tasks, Running{Task: task, Since: at.Started.UTC()})
		}
	}
}

// Drain orders the process to end as if it had been told by a SIGTERM: it takes nothing more, finishes or hands back
// what it has, and exits. The order holds for a minute, and for no process that starts after it. ErrNotFound when there is
// no such process; ErrConflict when it does not listen.
func (c *Client) Drain(ctx context.Context, id string) error {
	processes, err := c.Processes(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(processes, func(p Process) bool { return p.ID == id })
	switch {
	case at < 0:
		return fmt.Errorf("drain worker %s: %w", id, export.ErrNotFound)
	case !processes[at].Obeys:
		return fmt.Errorf("drain worker %s: %w: it takes no orders", id, export.ErrConflict)
	}
	now, err := c.redis.Time(ctx).Result()
	if err == nil {
		err = c.redis.Set(ctx, drainKey+id, now.UnixMilli(), orderLife).Err()
	}
	if err != nil {
		return fmt.Errorf("drain worker %s: %w: %w", id, export.ErrUnavailable, err)
	}
	return nil
}

// AwaitDrain listens for orders to the process of that id until there is one, or the context ends. Redis may be away
// meanwhile: orders given then are not heard, because they cannot be given either.
func (c *Client) AwaitDrain(ctx context.Context, id string) (ordered bool) {
	var since time.Time
	ticker := time.NewTicker(listenEvery)
	defer ticker.Stop()
	for {
		var listens *redis.StatusCmd
		var order *redis.StringCmd
		var clock *redis.TimeCmd
		_, err := c.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			clock, order = pipe.Time(ctx), pipe.Get(ctx, drainKey+id)
			listens = pipe.Set(ctx, listensKey+id, 1, listenLife)
			return nil
		})
		if (err == nil || errors.Is(err, redis.Nil)) && listens.Err() == nil {
			if since.IsZero() {
				since = clock.Val()
			}
			if at, err := order.Int64(); err == nil && at >= since.UnixMilli() {
				_ = c.redis.Del(ctx, listensKey+id, drainKey+id).Err() // both end by themselves
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// LastWatch returns when a scheduler last finished to look for silent units, or the zero time when that was so long ago
// that nothing tells of it any more: twice the interval at which it should.
func (c *Client) LastWatch(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	done, err := c.inspector.ListCompletedTasks(watchQueue, asynq.PageSize(100))
	if errors.Is(err, asynq.ErrQueueNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the last duty: %w: %w", export.ErrUnavailable, err)
	}
	var last time.Time
	for _, task := range done {
		if task.CompletedAt.After(last) {
			last = task.CompletedAt.UTC()
		}
	}
	return last, nil
}
