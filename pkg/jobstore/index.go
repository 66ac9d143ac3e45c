package jobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Entry is a job in an index: the active one by when it was created, the due one by when it is due.
type Entry struct {
	ID export.JobID
	At time.Time
}

// Active lists live jobs, the oldest first, in pages of the caller's size.
func (s *Store) Active(ctx context.Context, offset, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: activeIndex, Start: offset, Stop: offset + count - 1,
	}).Result()
	return entries(found, redisclient.Unavailable("list active jobs", err))
}

// Due lists the jobs that are due to expire or to be purged, the longest overdue first.
func (s *Store) Due(ctx context.Context, now time.Time, offset, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: dueIndex, ByScore: true, Start: "-inf", Stop: strconv.FormatInt(now.UnixMilli(), 10),
		Offset: int64(offset), Count: int64(count),
	}).Result()
	return entries(found, redisclient.Unavailable("list due jobs", err))
}

// Refile repairs the index entry of a job that ended or vanished under the previous release. It is idempotent.
func (s *Store) Refile(ctx context.Context, id export.JobID, now time.Time) error {
	_, err := s.run(ctx, "refile", s.scripts.refile, id, millis(now))
	return err
}

// Exists reports whether the job has a record.
func (s *Store) Exists(ctx context.Context, id export.JobID) (bool, error) {
	n, err := s.redis.Exists(ctx, key(id, "job")).Result()
	return n > 0, redisclient.Unavailable(fmt.Sprintf("find job %s", id), err)
}

// Published reports for each attempt whether it closed its unit with success. The sweep deletes the objects of all other
// attempts at the units of an ended job. An attempt with an unreadable result counts as published, with an error. It is one
// round trip: pass at most a thousand.
func (s *Store) Published(ctx context.Context, attempts []export.Origin) ([]bool, error) {
	fences, results := make([]*redis.StringCmd, len(attempts)), make([]*redis.StringCmd, len(attempts))
	err := s.pipelined(ctx, "read results of units", func(pipe redis.Pipeliner) {
		for i, a := range attempts {
			fences[i] = pipe.HGet(ctx, key(a.Job, "fences"), string(a.Unit))
			results[i] = pipe.HGet(ctx, key(a.Job, "results"), string(a.Unit))
		}
	})
	if err != nil {
		return nil, err
	}
	published := make([]bool, len(attempts))
	var errs []error
	for i, a := range attempts {
		if results[i].Val() == "" || fences[i].Val() != strconv.FormatInt(a.Fence, 10) {
			continue
		}
		var result export.Result
		if err := json.Unmarshal([]byte(results[i].Val()), &result); err != nil {
			errs = append(errs, fmt.Errorf("result of %s of job %s: %w", a.Unit, a.Job, err))
		}
		published[i] = result.Failure == ""
	}
	return published, errors.Join(errs...)
}

// pipelined sends the commands in one round trip. Missing keys and fields are no errors. The error of a pipeline is that of
// its first failed command, which may be such a one, while Redis refused a later command.
func (s *Store) pipelined(ctx context.Context, act string, commands func(redis.Pipeliner)) error {
	cmds, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error { commands(pipe); return nil })
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return redisclient.Unavailable(act, err)
		}
	}
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return redisclient.Unavailable(act, err)
}

const (
	// sweptKey is the key of the last object that an unfinished sweep has looked at.
	sweptKey = "sluice:swept"
	// sweptTTL bounds how long an unfinished sweep is continued.
	sweptTTL = 7 * 24 * time.Hour
)

// Swept returns the key of the last object that an unfinished sweep has looked at, or "".
func (s *Store) Swept(ctx context.Context) (string, error) {
	last, err := s.redis.Get(ctx, sweptKey).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return last, redisclient.Unavailable("read the position of the sweep", err)
}

// SetSwept records the position of the sweep; "" when it is finished.
func (s *Store) SetSwept(ctx context.Context, last string) error {
	if last == "" {
		return redisclient.Unavailable("finish the sweep", s.redis.Del(ctx, sweptKey).Err())
	}
	return redisclient.Unavailable("record the position of the sweep", s.redis.Set(ctx, sweptKey, last, sweptTTL).Err())
}

// JobCounts is a job's state and its unit counts.
type JobCounts struct {
	Entry
	State  export.State // "": it has no record
	Closed int64        // closed units
	Open   int64        // visible units that are not closed
}

// Counts reads the counts of the jobs in one round trip.
func (s *Store) Counts(ctx context.Context, jobs []Entry) ([]JobCounts, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	type answer struct {
		state                   *redis.StringCmd
		closed, waiting, issued *redis.IntCmd
	}
	answers := make([]answer, len(jobs))
	err := s.pipelined(ctx, "count units of jobs", func(p redis.Pipeliner) {
		for i, job := range jobs {
			answers[i] = answer{
				state: p.HGet(ctx, key(job.ID, "job"), "state"), closed: p.HLen(ctx, key(job.ID, "results")),
				waiting: p.ZCard(ctx, key(job.ID, "waiting")), issued: p.ZCard(ctx, key(job.ID, "issued")),
			}
		}
	})
	if err != nil {
		return nil, err
	}
	counts := make([]JobCounts, len(jobs))
	for i, a := range answers {
		counts[i] = JobCounts{
			Entry: jobs[i], State: export.State(a.state.Val()),
			Closed: a.closed.Val(), Open: a.waiting.Val() + a.issued.Val(),
		}
	}
	return counts, nil
}

// States reads the states of the jobs in one round trip; "" for one without a record. born is when a scheduler first
// reached this Redis, read after the states; the zero time if none has. A Redis that has lost its data is a new one.
func (s *Store) States(ctx context.Context, jobs []Entry) (states []export.State, born time.Time, err error) {
	if len(jobs) == 0 {
		return nil, time.Time{}, nil
	}
	answers := make([]*redis.StringCmd, len(jobs))
	var since *redis.StringCmd
	err = s.pipelined(ctx, "read states of jobs", func(p redis.Pipeliner) {
		for i, job := range jobs {
			answers[i] = p.HGet(ctx, key(job.ID, "job"), "state")
		}
		since = p.HGet(ctx, outageKey, "born")
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	states = make([]export.State, len(jobs))
	for i, answer := range answers {
		states[i] = export.State(answer.Val())
	}
	return states, instant(since.Val()), nil
}

// Sizes returns the number of jobs in the two indexes.
func (s *Store) Sizes(ctx context.Context) (active, ended int, err error) {
	a, err := s.redis.ZCard(ctx, activeIndex).Result()
	if err != nil {
		return 0, 0, redisclient.Unavailable("count active jobs", err)
	}
	k, err := s.redis.ZCard(ctx, dueIndex).Result()
	return int(a), int(k), redisclient.Unavailable("count kept jobs", err)
}

// ListEnded lists the ended jobs that are not yet purged, in the order in which they are due, in pages of the caller's
// size.
func (s *Store) ListEnded(ctx context.Context, offset, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: dueIndex, Start: offset, Stop: offset + count - 1,
	}).Result()
	return entries(found, redisclient.Unavailable("list kept jobs", err))
}

func entries(found []redis.Z, err error) ([]Entry, error) {
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(found))
	for _, z := range found {
		member, _ := z.Member.(string)
		list = append(list, Entry{ID: export.JobID(member), At: time.UnixMilli(int64(z.Score)).UTC()})
	}
	return list, nil
}
