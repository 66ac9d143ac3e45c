package jobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// ListJobs lists the newest jobs of both indexes, at most the given number of each, unordered. more reports whether there
// are others.
func (s *Store) ListJobs(ctx context.Context, most int) (ids []export.JobID, more bool, err error) {
	var active, due *redis.StringSliceCmd
	_, err = s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		active = pipe.ZRevRange(ctx, activeIndex, 0, int64(most))
		due = pipe.ZRevRange(ctx, dueIndex, 0, int64(most))
		return nil
	})
	if err != nil {
		return nil, false, redisclient.Unavailable("list jobs", err)
	}
	seen := map[string]bool{}
	for _, index := range [][]string{active.Val(), due.Val()} {
		more = more || len(index) > most
		for _, member := range index[:min(len(index), most)] {
			if id, err := export.ParseJobID(member); err == nil && !seen[member] {
				seen[member] = true
				ids = append(ids, id)
			}
		}
	}
	return ids, more, nil
}

// readBatch bounds the reply to one command or pipeline.
const readBatch = 500

// Jobs returns the records of those jobs that have one, in the order of the ids, without their wrapped data keys.
func (s *Store) Jobs(ctx context.Context, ids []export.JobID) ([]export.Job, error) {
	jobs := make([]export.Job, 0, len(ids))
	for batch := range slices.Chunk(ids, readBatch) {
		records := make([]*redis.MapStringStringCmd, len(batch))
		_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i, id := range batch {
				records[i] = pipe.HGetAll(ctx, key(id, "job"))
			}
			return nil
		})
		if err != nil {
			return nil, redisclient.Unavailable("read jobs", err)
		}
		for i, id := range batch {
			if len(records[i].Val()) == 0 {
				continue
			}
			job, err := decodeJob(id, records[i].Val())
			if err != nil {
				return nil, err
			}
			job.Key = nil
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

// UnitStatus is a unit with its state.
type UnitStatus struct {
	Unit     export.Unit
	Fence    int64
	Attempts int          // failures so far
	Cause    export.Cause // why it was last given back or lost; "" when it never was
	Waiting  bool         // not yet handed to the queue
	Claimed  bool         // a worker has claimed it
	// Heard is when it was issued or sent its last heartbeat; a time after Inspection.At is that of its next attempt. Zero:
	// it is not issued.
	Heard  time.Time
	Closed bool
	Result export.Result // of a closed one
}

// Inspection is a job and its units at one instant of Redis' clock (or the injected one).
type Inspection struct {
	Job   export.Job
	At    time.Time
	Units []UnitStatus // in the order of their ids, without those that an uncommitted plan has cut
}

// Inspect reads a job with all its units: the records in one transaction, then the results. It holds all units of the job
// at once. ErrNotFound when there is no such job.
func (s *Store) Inspect(ctx context.Context, id export.JobID) (Inspection, error) {
	act := fmt.Sprintf("inspect job %s", id)
	var record, units, fences, attempts, claims *redis.MapStringStringCmd
	var issued, waiting *redis.ZSliceCmd
	var staged, closed *redis.StringSliceCmd
	_, err := s.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		record, units = tx.HGetAll(ctx, key(id, "job")), tx.HGetAll(ctx, key(id, "units"))
		fences, attempts = tx.HGetAll(ctx, key(id, "fences")), tx.HGetAll(ctx, key(id, "attempts"))
		claims, closed = tx.HGetAll(ctx, key(id, "claims")), tx.HKeys(ctx, key(id, "results"))
		issued, waiting = tx.ZRangeWithScores(ctx, key(id, "issued"), 0, -1), tx.ZRangeWithScores(ctx, key(id, "waiting"), 0, -1)
		staged = tx.ZRange(ctx, key(id, "staged"), 0, -1)
		return nil
	})
	if err != nil {
		return Inspection{}, redisclient.Unavailable(act, err)
	}
	if len(record.Val()) == 0 {
		return Inspection{}, fmt.Errorf("%s: %w", act, export.ErrNotFound)
	}
	found := Inspection{}
	if found.Job, err = decodeJob(id, record.Val()); err != nil {
		return Inspection{}, err
	}
	found.Job.Key = nil
	if found.At, err = s.Time(ctx); err != nil {
		return Inspection{}, fmt.Errorf("%s: %w", act, err)
	}

	hidden := map[string]bool{}
	for _, unit := range staged.Val() {
		hidden[unit] = true
	}
	position := map[string]int{}
	for name, spec := range units.Val() {
		if hidden[name] {
			continue
		}
		status := UnitStatus{Cause: export.Cause(attempts.Val()[name+causeField])}
		if err := json.Unmarshal([]byte(spec), &status.Unit); err != nil {
			return Inspection{}, fmt.Errorf("%s: unit %s: %w", act, name, err)
		}
		status.Fence, err = strconv.ParseInt(fences.Val()[name], 10, 64)
		if failures := attempts.Val()[name]; failures != "" && err == nil {
			status.Attempts, err = strconv.Atoi(failures)
		}
		if err != nil {
			return Inspection{}, fmt.Errorf("%s: unit %s: %w", act, name, err)
		}
		status.Claimed = claims.Val()[name] == fences.Val()[name]
		found.Units = append(found.Units, status)
	}
	slices.SortFunc(found.Units, func(a, b UnitStatus) int { return strings.Compare(string(a.Unit.ID), string(b.Unit.ID)) })
	for i, status := range found.Units {
		position[string(status.Unit.ID)] = i
	}
	for _, z := range issued.Val() {
		if i, known := position[member(z)]; known {
			found.Units[i].Heard = time.UnixMilli(int64(z.Score)).UTC()
		}
	}
	for _, z := range waiting.Val() {
		if i, known := position[member(z)]; known {
			found.Units[i].Waiting = true
		}
	}
	return found, s.readResults(ctx, act, &found, closed.Val(), position)
}

func member(z redis.Z) string {
	name, _ := z.Member.(string)
	return name
}

func (s *Store) readResults(
	ctx context.Context, act string, found *Inspection, closed []string, position map[string]int,
) error {
	for batch := range slices.Chunk(closed, readBatch) {
		results, err := s.redis.HMGet(ctx, key(found.Job.ID, "results"), batch...).Result()
		if err != nil {
			return redisclient.Unavailable(act, err)
		}
		for i, name := range batch {
			text, there := results[i].(string)
			at, known := position[name]
			if !there || !known {
				continue
			}
			found.Units[at].Closed = true
			if err := json.Unmarshal([]byte(text), &found.Units[at].Result); err != nil {
				return fmt.Errorf("%s: result of %s: %w", act, name, err)
			}
		}
	}
	return nil
}

// Health is the state of the Redis server. Fields that the server does not report, such as an embedded one, are empty.
type Health struct {
	Version    string
	Eviction   string        // maxmemory-policy
	AOF        string        // "1": an append-only file is written
	AOFStatus  string        // "ok" when the last write of it was good
	Role       string        // master or slave
	Memory     int64         // bytes in use
	MemoryMost int64         // bytes that may be in use; 0: no limit
	Clock      time.Time     // its clock, about half of Latency ago
	Latency    time.Duration // of one command
}

// Health reads the state of the Redis server.
func (s *Store) Health(ctx context.Context) (Health, error) {
	if err := s.redis.Ping(ctx).Err(); err != nil { // so that Latency does not include the connection
		return Health{}, redisclient.Unavailable("read the health of redis", err)
	}
	begun := time.Now()
	clock, err := s.redis.Time(ctx).Result()
	if err != nil {
		return Health{}, redisclient.Unavailable("read the health of redis", err)
	}
	health := Health{Clock: clock.UTC(), Latency: time.Since(begun)}
	info, err := s.redis.InfoMap(ctx).Result()
	var refused redis.Error
	if err != nil && !errors.As(err, &refused) {
		return Health{}, redisclient.Unavailable("read the health of redis", err)
	}
	health.Version, health.Role = info["Server"]["redis_version"], info["Replication"]["role"]
	health.Eviction = info["Memory"]["maxmemory_policy"]
	health.AOF, health.AOFStatus = info["Persistence"]["aof_enabled"], info["Persistence"]["aof_last_write_status"]
	for field, into := range map[string]*int64{"used_memory": &health.Memory, "maxmemory": &health.MemoryMost} {
		if text := info["Memory"][field]; text != "" {
			if *into, err = strconv.ParseInt(text, 10, 64); err != nil {
				return Health{}, fmt.Errorf("read the health of redis: %s: %w", field, err)
			}
		}
	}
	return health, nil
}
