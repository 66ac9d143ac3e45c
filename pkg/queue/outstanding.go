package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// fewestOutstanding keeps a few workers busy, also while they come up.
	fewestOutstanding = 16
	// outstandingPerSlot keeps the next unit of a slot in the queue while one runs.
	outstandingPerSlot = 2
	// slotsFresh is how long a process uses the count that it has read.
	slotsFresh = 10 * time.Second
)

// slotsKey is the number of long units that all workers can run at once, as the last Workers has counted it. Counting takes
// commands for each worker, so not every worker may count. The surveys of the schedulers do; without a scheduler, a worker
// does after slotsLife.
const (
	slotsKey  = "sluice:slots"
	slotsLife = time.Minute
)

// slots is the count that this process has read.
type slots struct {
	mu    sync.Mutex
	count int
	till  time.Time
}

// Outstanding returns how many units of one job may be queued or running at once: the configured number, or, for 0, twice
// the slots of all live workers, at least 16. One job can use every worker, and no job fills the queue (pitfall 25).
func (c *Client) Outstanding(ctx context.Context, configured int) (int, error) {
	if configured > 0 {
		return configured, nil
	}
	c.slots.mu.Lock()
	count, fresh := c.slots.count, time.Now().Before(c.slots.till)
	c.slots.mu.Unlock()
	if !fresh {
		var err error
		count, err = c.redis.Get(ctx, slotsKey).Int()
		if errors.Is(err, redis.Nil) {
			var workers Workers
			workers, err = c.Workers(ctx)
			count = workers.Slots
		}
		if err != nil {
			return 0, fmt.Errorf("count workers: %w: %w", export.ErrUnavailable, err)
		}
		c.slots.mu.Lock()
		c.slots.count, c.slots.till = count, time.Now().Add(slotsFresh)
		c.slots.mu.Unlock()
	}
	return max(outstandingPerSlot*count, fewestOutstanding), nil
}
