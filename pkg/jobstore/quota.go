package jobstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

//go:embed lua/held.lua
var heldScript string

// Held is what an owner's finished jobs hold until they expire or are deleted. Jobs that a worker of an earlier version
// finished are not in it.
type Held struct {
	Finished int
	Stored   int64        // bytes of their files in the object store
	First    export.JobID // the first to expire; "" for none
	Expires  time.Time    // of First
}

// Held returns what the owner holds. Its cost does not depend on the number of jobs.
func (s *Store) Held(ctx context.Context, owner export.Owner) (Held, error) {
	keys := []string{"sluice:finished:" + owner.Key(), "sluice:stored:" + owner.Key()}
	reply, err := redis.NewScript(heldScript).Run(ctx, s.redis, keys, s.clock()).Slice()
	if err != nil {
		return Held{}, redisclient.Unavailable("count finished jobs", err)
	}
	count, _ := reply[0].(int64)
	total, _ := reply[1].(string)
	first, _ := reply[2].(string)
	at, _ := reply[3].(string)
	stored, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return Held{}, fmt.Errorf("count finished jobs: %w", err)
	}
	return Held{Finished: int(count), Stored: stored, First: export.JobID(first), Expires: instant(at)}, nil
}

// mostMemory is the part of Redis' memory, in percent, above which no new jobs are recorded: the rest is for the jobs that
// exist. At 100 % every command that writes fails, also the commit of a unit and the count of a poll.
const mostMemory = 80

// Room returns export.ErrUnavailable when Redis has too little memory left for new jobs. A Redis without a limit, or one
// that hides it, has room.
func (s *Store) Room(ctx context.Context) error {
	info, err := s.redis.InfoMap(ctx, "memory").Result()
	var refused redis.Error
	if errors.As(err, &refused) {
		return nil
	}
	if err != nil {
		return redisclient.Unavailable("read the memory of redis", err)
	}
	used, _ := strconv.ParseFloat(info["Memory"]["used_memory"], 64)
	most, _ := strconv.ParseFloat(info["Memory"]["maxmemory"], 64)
	if most > 0 && used*100 > most*mostMemory {
		return fmt.Errorf("%w: redis uses more than %d %% of its maxmemory", export.ErrUnavailable, mostMemory)
	}
	return nil
}
