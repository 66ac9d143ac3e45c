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
	ID          string    // host:pid
	Host        string    //
	PID         int       //
	Started     time.Time //
	Slots       int       // tasks at once
	Units       bool      // it takes units
	Maintenance bool      // it takes passes and purges
	Draining    bool      // it takes no more tasks
	Drainable   bool      // it listens for drain orders
	Tasks       []Running // running units, the longest first
}

// Running is a running unit.
type Running struct {
	Task  Task
	Since time.Time
}

// Prefixes of the keys of drain orders; a process id follows.
const (
	listensKey = "sluice:worker:listens:" // exists while the process listens
	drainKey   = "sluice:worker:drain:"   // the instant of the order, ms of Redis' clock
)

const (
	listenEvery = 2 * time.Second
	listenLife  = 15 * time.Second // outlasts a pause of the process or of Redis
	// orderLife is how long an order waits for its process. A later process of the same id ignores orders from before its
	// start.
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

// Processes lists the processes with a heartbeat in the last ten seconds, the oldest first. The Inspector ignores ctx; it
// times out after a few seconds.
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
		process.add(server)
	}
	list := make([]Process, 0, len(found))
	for _, process := range found {
		slices.SortFunc(process.Tasks, func(a, b Running) int { return a.Since.Compare(b.Since) })
		n, err := c.redis.Exists(ctx, listensKey+process.ID).Result()
		if err != nil {
			return nil, fmt.Errorf("list workers: %w: %w", export.ErrUnavailable, err)
		}
		process.Drainable = n > 0
		list = append(list, *process)
	}
	slices.SortFunc(list, func(a, b Process) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// add adds an Asynq server of the process: a worker has one for the express queue and one for all queues.
func (p *Process) add(server *asynq.ServerInfo) {
	if server.Started.Before(p.Started) {
		p.Started = server.Started.UTC()
	}
	p.Slots += server.Concurrency
	p.Draining = p.Draining || server.Status != "active"
	for name := range server.Queues {
		p.Units = p.Units || name == expressQueue || name == bulkQueue
		p.Maintenance = p.Maintenance || name == maintenanceQueue || name == rescueQueue
	}
	for _, at := range server.ActiveWorkers {
		// An unreadable payload is from a later release: the task runs, but is not listed.
		if task, err := decodeTask(at.TaskPayload); err == nil && slices.Contains([]string{expressQueue, bulkQueue}, at.Queue) {
			p.Tasks = append(p.Tasks, Running{Task: task, Since: at.Started.UTC()})
		}
	}
}

// Drain orders the process to stop as after a SIGTERM: it takes no more tasks, finishes or hands back its units, and exits.
// The order expires after a minute and does not bind processes that start later. ErrNotFound when there is no such process;
// ErrConflict when it does not listen for orders.
func (c *Client) Drain(ctx context.Context, id string) error {
	processes, err := c.Processes(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(processes, func(p Process) bool { return p.ID == id })
	switch {
	case at < 0:
		return fmt.Errorf("drain worker %s: %w", id, export.ErrNotFound)
	case !processes[at].Drainable:
		return fmt.Errorf("drain worker %s: %w: it does not take drain orders", id, export.ErrConflict)
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

// AwaitDrain waits for a drain order to the process of that id, or for the end of the context. It survives outages of
// Redis.
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
				_ = c.redis.Del(ctx, listensKey+id, drainKey+id).Err() // both expire
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

// LastRescue returns when a scheduler last finished a rescue pass, or the zero time when that is longer ago than twice the
// pass's interval.
func (c *Client) LastRescue(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	done, err := c.inspector.ListCompletedTasks(rescueQueue, asynq.PageSize(100))
	if errors.Is(err, asynq.ErrQueueNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the last rescue: %w: %w", export.ErrUnavailable, err)
	}
	var last time.Time
	for _, task := range done {
		if task.CompletedAt.After(last) {
			last = task.CompletedAt.UTC()
		}
	}
	return last, nil
}
