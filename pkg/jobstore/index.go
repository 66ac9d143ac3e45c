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

// IsPublished reports whether this attempt closed the unit with success. The sweep deletes the objects of all other
// attempts at the units of an ended job.
func (s *Store) IsPublished(ctx context.Context, id export.JobID, unit export.UnitID, fence int64) (bool, error) {
	var current, text *redis.StringCmd
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		current = pipe.HGet(ctx, key(id, "fences"), string(unit))
		text = pipe.HGet(ctx, key(id, "results"), string(unit))
		return nil
	})
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, redisclient.Unavailable(fmt.Sprintf("read the result of %s of job %s", unit, id), err)
	}
	var result export.Result
	if err := json.Unmarshal([]byte(text.Val()), &result); err != nil {
		return false, fmt.Errorf("result of %s of job %s: %w", unit, id, err)
	}
	return current.Val() == strconv.FormatInt(fence, 10) && result.Failure == "", nil
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
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, job := range jobs {
			answers[i] = answer{
				state: p.HGet(ctx, key(job.ID, "job"), "state"), closed: p.HLen(ctx, key(job.ID, "results")),
				waiting: p.ZCard(ctx, key(job.ID, "waiting")), issued: p.ZCard(ctx, key(job.ID, "issued")),
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, redisclient.Unavailable("count units of jobs", err)
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

// States reads the states of the jobs in one round trip; "" for one without a record.
func (s *Store) States(ctx context.Context, jobs []Entry) ([]export.State, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	answers := make([]*redis.StringCmd, len(jobs))
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, job := range jobs {
			answers[i] = p.HGet(ctx, key(job.ID, "job"), "state")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, redisclient.Unavailable("read states of jobs", err)
	}
	states := make([]export.State, len(jobs))
	for i, answer := range answers {
		states[i] = export.State(answer.Val())
	}
	return states, nil
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
