// Package jobstore keeps jobs and their units in Redis. Every step that changes a job is one Lua script that compares
// before it sets, and changes record, units and indexes together: it may be repeated, delayed or raced, and takes effect
// once or not at all. A record always has its index entry.
//
// Two sorted sets index all jobs: "active" (live jobs) and "due" (ended jobs, by when they expire or are to be purged). A
// third one for each owner counts the live jobs against the owner's limit, and two more what its finished ones hold.
//
// Redis must run with noeviction and an append-only file: there is no other copy of the jobs.
package jobstore

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

const (
	activeIndex = "sluice:jobs:active" // member: job id, score: when it was created, ms
	dueIndex    = "sluice:jobs:due"    // member: job id, score: when it expires or is to be purged, ms
	committed   = "sluice:committed"   // hash: resources, bytes and stored bytes of all commits ever
	// hash: born, when a scheduler first reached this Redis; seen, when one last did; over, when Redis was reached again
	// after an outage; ms
	outageKey = "sluice:outage"
)

const (
	// safetyTTL is the TTL of the keys of a live job, in case no scheduler ever purges it. It is far beyond the age at which
	// jobs fail, and is renewed by each claim and commit.
	safetyTTL = 90 * 24 * time.Hour
	// endedTTL is the same for an ended job, from the instant at which it is due.
	endedTTL = 30 * 24 * time.Hour
	// removedTTL is how long a removed job's id is refused: longer than any command can be delayed.
	removedTTL = 10 * time.Minute
)

// jobKeys are the keys of one job, by the names that the scripts use.
//
//	job      hash  the record
//	units    hash  unit id -> Unit (JSON), never changed
//	staged   zset  units that an uncommitted plan has cut, by bytes
//	waiting  zset  units not yet handed to the queue, by bytes
//	issued   zset  units queued or running, by when last heard of, ms
//	fences   hash  unit id -> current fence
//	attempts hash  unit id -> failures so far
//	claims   hash  unit id -> fence of the worker that runs it; unit id + ".token" -> token of its claim
//	results  hash  unit id -> Result (JSON) of a closed unit
//	files    hash  file name -> unit id
//	polls    string  status polls in the current window
var jobKeys = []string{
	"job", "units", "staged", "waiting", "issued", "fences", "attempts", "claims", "results", "files", "polls",
}

// Store is the job store. Use Open.
type Store struct {
	redis   *redis.Client
	scripts scripts
	now     func() time.Time // nil: leases go by the server's clock
}

// Open returns a store on the Redis at the URL. It makes no connection yet.
//
// Leases, heartbeats and silence use the clock of Redis, so that a wrong clock of a machine cannot cost a worker its
// units. Tests pass a clock; everything else passes nil.
func Open(url string, now func() time.Time, options ...redisclient.Option) (*Store, error) {
	scripts, err := loadScripts()
	if err != nil {
		return nil, err
	}
	client, err := redisclient.Open(url, options...)
	if err != nil {
		return nil, err
	}
	return &Store{redis: client, scripts: scripts, now: now}, nil
}

// Close ends the connections.
func (s *Store) Close() error { return s.redis.Close() }

// Ping returns an error unless Redis answers and never evicts keys.
func (s *Store) Ping(ctx context.Context) error { return redisclient.Ping(ctx, s.redis) }

// keysOf are the KEYS of a job's scripts: its own, the mark of its removal, and those that all jobs share.
func keysOf(id export.JobID) []string {
	keys := make([]string, 0, len(jobKeys)+5)
	for _, name := range jobKeys {
		keys = append(keys, key(id, name))
	}
	return append(keys, key(id, "removed"), activeIndex, dueIndex, committed, outageKey)
}

func key(id export.JobID, name string) string { return "sluice:{" + string(id) + "}:" + name }

// run executes a script and maps its status to the domain's errors, with the reason if the script returns one. It returns
// the values after the status.
func (s *Store) run(ctx context.Context, act string, script *redis.Script, id export.JobID, args ...any) ([]any, error) {
	reply, err := script.Run(ctx, s.redis, keysOf(id), args...).Slice()
	if err != nil {
		return nil, redisclient.Unavailable(fmt.Sprintf("%s job %s", act, id), err)
	}
	verdict, _ := reply[0].(string)
	if cause, refused := verdicts[verdict]; refused {
		if len(reply) > 1 {
			return nil, fmt.Errorf("%s job %s: %w: %v", act, id, cause, reply[1])
		}
		return nil, fmt.Errorf("%s job %s: %w", act, id, cause)
	}
	return reply[1:], nil
}

var verdicts = map[string]error{
	"CONFLICT": export.ErrConflict,
	"FENCED":   export.ErrFenced,
	"NOTLIVE":  export.ErrNotLive,
	"NOTFOUND": export.ErrNotFound,
}

// Time returns the time of Redis, or of the injected clock.
func (s *Store) Time(ctx context.Context) (time.Time, error) {
	if s.now != nil {
		return s.now(), nil
	}
	now, err := s.redis.Time(ctx).Result()
	return now.UTC(), redisclient.Unavailable("read the time of redis", err)
}

func (s *Store) clock() string { return redisclient.Clock(s.now) }

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms string) time.Time {
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}
