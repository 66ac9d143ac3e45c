// Package jobstore keeps jobs and their units in Redis. Every step that changes a job is one Lua script that compares
// before it sets, so each may be repeated, delayed or raced and still happens once or not at all.
//
// All keys of a job share one hash tag, so a job lives in one slot of a cluster. Two sorted sets index all jobs:
// "active" (jobs that may need work) and "due" (jobs to expire or purge, by time). They are updated beside the scripts
// in an order that leaves at worst a superfluous entry, which the scheduler's next tick removes.
//
// Redis must run with noeviction and an append-only file: what is lost there is lost.
package jobstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redishook"
)

const (
	activeIndex = "sluice:jobs:active" // member: job id, score: when it was entered, ms
	dueIndex    = "sluice:jobs:due"    // member: job id, score: when it expires or is to be purged, ms
	committed   = "sluice:committed"   // hash: resources and bytes of all commits ever, as good as it gets (tally)
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
//	claims   hash  unit id -> fence of the worker that runs it
//	results  hash  unit id -> Result (JSON) of a closed unit
//	files    hash  file name -> unit id
//	polls    string  status polls in the current window
var jobKeys = []string{
	"job", "units", "staged", "waiting", "issued", "fences", "attempts", "claims", "results", "files", "polls",
}

// Store is the job store. Use Open.
type Store struct {
	redis   redis.UniversalClient
	scripts scripts
	now     func() time.Time // nil: leases go by the server's clock
}

// Open returns a store on the Redis at the URL (redis:// or rediss://, with user, password and database). It makes no
// connection yet. Waits are short, because a caller with a client waiting must soon answer 503.
//
// Leases, heartbeats and silence go by the clock of Redis, so that no machine's clock can take a unit from a worker. A
// test gives a clock of its own; everybody else gives nil.
func Open(url string, now func() time.Time, options ...Option) (*Store, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the Redis URL cannot be parsed") // the library's error may quote the password
	}
	if opts.TLSConfig != nil && opts.TLSConfig.InsecureSkipVerify {
		return nil, errors.New("the Redis URL says skip_verify, which would let anybody pose as the server")
	}
	given := settings{redis: opts}
	for _, option := range options {
		option(&given)
	}
	opts.DialTimeout = 2 * time.Second
	opts.ReadTimeout = 3 * time.Second
	opts.WriteTimeout = 3 * time.Second
	opts.MaxRetries = 1
	s, err := loadScripts()
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(opts)
	redishook.Observe(client, given.observe)
	return &Store{redis: client, scripts: s, now: now}, nil
}

// Close ends the connections.
func (s *Store) Close() error { return s.redis.Close() }

// Ping reports whether Redis answers and keeps what it is given: one that evicts keys when it is full would lose jobs
// without a word (pitfall 27). A server that does not tell its policy is taken at its operator's word.
func (s *Store) Ping(ctx context.Context) error {
	info, err := s.redis.InfoMap(ctx, "memory").Result()
	if err != nil {
		if err := s.redis.Ping(ctx).Err(); err != nil {
			return unavailable("ping redis", err)
		}
		return nil
	}
	policy := info["Memory"]["maxmemory_policy"]
	if policy != "" && policy != "noeviction" {
		return fmt.Errorf("redis evicts keys (maxmemory-policy %s): %w", policy, export.ErrUnavailable)
	}
	return nil
}

func keysOf(id export.JobID) []string {
	keys := make([]string, len(jobKeys))
	for i, name := range jobKeys {
		keys[i] = key(id, name)
	}
	return keys
}

func key(id export.JobID, name string) string { return "sluice:{" + string(id) + "}:" + name }

// run executes a script and maps its verdict to the domain's errors, with the reason if the script gives one. It returns
// what follows the verdict.
func (s *Store) run(ctx context.Context, act string, script *redis.Script, id export.JobID, args ...any) ([]any, error) {
	reply, err := script.Run(ctx, s.redis, keysOf(id), args...).Slice()
	if err != nil {
		return nil, unavailable(fmt.Sprintf("%s job %s", act, id), err)
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

// unavailable wraps trouble with Redis, so that callers can tell it from an answer.
func unavailable(act string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, err)
}

// clock is what the scripts are given: the injected clock's instant, or nothing for the server's own.
func (s *Store) clock() string {
	if s.now == nil {
		return ""
	}
	return strconv.FormatInt(s.now().UnixMilli(), 10)
}

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
