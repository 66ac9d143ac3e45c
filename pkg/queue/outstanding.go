package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// fewestOutstanding keeps a few workers busy, also while they come up.
	fewestOutstanding = 16
	// outstandingPerSlot keeps the next unit of a slot in the queue while one runs.
	outstandingPerSlot = 2
	// slotsFresh is how long a count is used. Asynq lists a dead server for 10 s anyway.
	slotsFresh = 10 * time.Second
)

// slots counts the long units that all workers can run at once.
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
	defer c.slots.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if time.Now().After(c.slots.till) {
		servers, err := c.inspector.Servers()
		if err != nil {
			return 0, fmt.Errorf("count workers: %w: %w", export.ErrUnavailable, err)
		}
		c.slots.count = 0
		for _, server := range servers {
			if _, long := server.Queues[bulkQueue]; long {
				c.slots.count += server.Concurrency
			}
		}
		c.slots.till = time.Now().Add(slotsFresh)
	}
	return max(outstandingPerSlot*c.slots.count, fewestOutstanding), nil
}
