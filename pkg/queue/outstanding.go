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
	// outstandingPerSlot: while a slot takes the next unit, the one after it is already on its way.
	outstandingPerSlot = 2
	// slotsFresh is how long a count of slots is good for. Asynq itself tells of a dead server for 10 s.
	slotsFresh = 10 * time.Second
)

// slots is a count of the places at which workers do long units.
type slots struct {
	mu    sync.Mutex
	count int
	till  time.Time
}

// Outstanding returns how many units of one job may be queued or running at once: what is configured, or for 0 twice as
// many as all the workers that are alive can do at once, and 16 at least. So one job can use every worker, and no job can
// fill the queue before another one (pitfall 25).
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
