package jobstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Entry is a job in an index, with the instant it stands there for.
type Entry struct {
	ID export.JobID
	At time.Time
}

// Active lists jobs that may need work: those that run, and those that ended a moment ago. The instant is when the job
// was entered. The jobs are read in pages of the caller's size, from the position of offset.
func (s *Store) Active(ctx context.Context, offset, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: activeIndex, Start: offset, Stop: offset + count - 1,
	}).Result()
	return entries(found, unavailable("list active jobs", err))
}

// Due lists jobs whose time to expire or be purged has come, the longest overdue first.
func (s *Store) Due(ctx context.Context, now time.Time, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: dueIndex, ByScore: true, Start: "-inf", Stop: strconv.FormatInt(now.UnixMilli(), 10), Count: int64(count),
	}).Result()
	return entries(found, unavailable("list due jobs", err))
}

// SetDue files an ended job under the instant at which it is to be expired or purged, and takes it out of the active
// index. It is idempotent.
func (s *Store) SetDue(ctx context.Context, id export.JobID, at time.Time) error {
	if err := s.redis.ZAdd(ctx, dueIndex, redis.Z{Score: float64(at.UnixMilli()), Member: string(id)}).Err(); err != nil {
		return unavailable(fmt.Sprintf("file job %s as due", id), err)
	}
	if err := s.redis.ZRem(ctx, activeIndex, string(id)).Err(); err != nil {
		return unavailable(fmt.Sprintf("take job %s from the active index", id), err)
	}
	return nil
}

// Leave takes a job that has no record out of the active index.
func (s *Store) Leave(ctx context.Context, id export.JobID) error {
	return unavailable(fmt.Sprintf("take job %s from the active index", id),
		s.redis.ZRem(ctx, activeIndex, string(id)).Err())
}

// Exists reports whether the job has a record, for the sweep of orphaned objects.
func (s *Store) Exists(ctx context.Context, id export.JobID) (bool, error) {
	n, err := s.redis.Exists(ctx, key(id, "job")).Result()
	return n > 0, unavailable(fmt.Sprintf("find job %s", id), err)
}

// Holds reports whether the fence is the one under which the unit is claimed now, or under which it was committed: the
// sweep keeps its objects and removes those of every other attempt.
func (s *Store) Holds(ctx context.Context, id export.JobID, unit export.UnitID, fence int64) (bool, error) {
	current, err := s.redis.HGet(ctx, key(id, "fences"), string(unit)).Int64()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, unavailable(fmt.Sprintf("fence of %s of job %s", unit, id), err)
	}
	return current == fence, nil
}

// Standing is where a job stands, as far as its counters tell.
type Standing struct {
	ID      export.JobID
	State   export.State // "": it has no record
	Entered time.Time    // when it was entered in its index, or when it is due
	Closed  int64        // units that are closed
	Open    int64        // units that are visible and not closed
}

// Standings reads where the jobs of the entries stand, in one round trip.
func (s *Store) Standings(ctx context.Context, jobs []Entry) ([]Standing, error) {
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
		return nil, unavailable("read where jobs stand", err)
	}
	standings := make([]Standing, len(jobs))
	for i, a := range answers {
		standings[i] = Standing{
			ID: jobs[i].ID, State: export.State(a.state.Val()), Entered: jobs[i].At,
			Closed: a.closed.Val(), Open: a.waiting.Val() + a.issued.Val(),
		}
	}
	return standings, nil
}

// States reads the states of the jobs of the entries, "" for one without a record, in one round trip.
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
		return nil, unavailable("read states of jobs", err)
	}
	states := make([]export.State, len(jobs))
	for i, answer := range answers {
		states[i] = export.State(answer.Val())
	}
	return states, nil
}

// Sizes returns how many jobs the two indexes hold.
func (s *Store) Sizes(ctx context.Context) (active, kept int, err error) {
	a, err := s.redis.ZCard(ctx, activeIndex).Result()
	if err != nil {
		return 0, 0, unavailable("count active jobs", err)
	}
	k, err := s.redis.ZCard(ctx, dueIndex).Result()
	return int(a), int(k), unavailable("count kept jobs", err)
}

// Kept lists jobs that have ended and are kept until they are expired and purged, the first due first, in pages as Active
// does. The instant is when the job is due.
func (s *Store) Kept(ctx context.Context, offset, count int) ([]Entry, error) {
	found, err := s.redis.ZRangeArgsWithScores(ctx, redis.ZRangeArgs{
		Key: dueIndex, Start: offset, Stop: offset + count - 1,
	}).Result()
	return entries(found, unavailable("list kept jobs", err))
}

func (s *Store) enter(ctx context.Context, id export.JobID) error {
	now := time.Now
	if s.now != nil {
		now = s.now
	}
	err := s.redis.ZAdd(ctx, activeIndex, redis.Z{Score: float64(now().UnixMilli()), Member: string(id)}).Err()
	return unavailable(fmt.Sprintf("enter job %s in the active index", id), err)
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
