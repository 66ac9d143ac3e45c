package jobstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// recordDue is how soon after its admission a job has a record. What has none after that was never started: the
	// process that had admitted it died. Far longer than any kick-off takes.
	recordDue = time.Minute
	// admissionKept is when an owner's set goes that nobody has asked about: longer than any job may run.
	admissionKept = 30 * 24 * time.Hour
	// sameWait is how long a kick-off waits to see whether the identical one before it comes to anything.
	sameWait = time.Second
)

// FullError refuses a job whose owner has as many at work as are allowed.
type FullError struct{ Running []export.JobID }

func (e FullError) Error() string {
	return fmt.Sprintf("the owner has %d jobs at work", len(e.Running))
}

// Admit takes a place for a job among those that its owner has at work, of which there are never more than limit, however
// many processes admit at a time. A job keeps its place until it has ended; one that Admit let in and that is not
// started after all gives it back by Withdraw. FullError when there is no place.
//
// It returns the id of the job, or, with join, that of a running job with the same request: then no place is taken, and
// the new job is not to be started.
//
// Who has ended is found out when places are short: the set names candidates, and the record of each decides. So nothing
// that ends a job has to know of the set, and a process that dies anywhere leaves at worst an entry that the next
// shortage removes.
func (s *Store) Admit(ctx context.Context, job export.Job, limit int, join bool) (export.JobID, error) {
	running, member, err := s.place(job)
	if err != nil {
		return "", err
	}
	for begun := time.Now(); ; {
		reply, err := s.scripts.admit.Run(ctx, s.redis, []string{running},
			member, limit, join, s.clock(), admissionKept.Milliseconds()).Slice()
		if err != nil {
			return "", unavailable("admit a job", err)
		}
		if reply[0] == "OK" {
			return job.ID, nil
		}
		found, err := s.stand(ctx, reply[1:])
		if err != nil {
			return "", err
		}
		if len(found.ended) > 0 {
			if err := s.redis.ZRem(ctx, running, found.ended...).Err(); err != nil {
				return "", unavailable("admit a job", err)
			}
			continue
		}
		if reply[0] == "FULL" {
			return "", FullError{Running: append(found.live, found.pending...)}
		}
		if len(found.settled) > 0 {
			return found.settled[0], nil
		}
		// The identical kick-off is not through: its job may not be recorded yet, or be taken back because it could not be
		// queued. To name that job now could be to name one that never comes.
		if time.Since(begun) > sameWait {
			return "", fmt.Errorf("admit a job: the same one is being started: %w", export.ErrUnavailable)
		}
		if err := pause(ctx, sameWait/20); err != nil {
			return "", unavailable("admit a job", err)
		}
	}
}

// Settle says that an admitted job is recorded and queued: from here on an identical kick-off may be told of it. Without it
// that comes with the claim of the plan.
func (s *Store) Settle(ctx context.Context, job export.Job) error {
	running, member, err := s.place(job)
	if err != nil {
		return err
	}
	// The sign of the score says it. A member that is gone stays so.
	now := float64(-time.Now().UnixMilli())
	if s.now != nil {
		now = float64(-s.now().UnixMilli())
	}
	return unavailable(fmt.Sprintf("settle job %s", job.ID),
		s.redis.ZAddXX(ctx, running, redis.Z{Score: now, Member: member}).Err())
}

// Withdraw gives the place of a job back that was admitted and not started, that was cancelled, or that is purged. It is
// idempotent.
func (s *Store) Withdraw(ctx context.Context, job export.Job) error {
	running, member, err := s.place(job)
	if err != nil {
		return err
	}
	return unavailable(fmt.Sprintf("withdraw job %s", job.ID), s.redis.ZRem(ctx, running, member).Err())
}

// Allow counts one more of what an owner does and returns how long the owner has to wait when that was more often than
// limit in the window, and zero when it is allowed. Who has waited for so long is allowed again.
func (s *Store) Allow(
	ctx context.Context, what string, owner export.Owner, window time.Duration, limit int,
) (wait time.Duration, err error) {
	wait, err = s.count(ctx, "sluice:rate:"+what+":"+owner.Key(), window, limit)
	if err != nil {
		return 0, fmt.Errorf("count %s of an owner: %w", what, err)
	}
	return wait, nil
}

// count counts up. A window begins with the first count after the last one's end: it is the counter's life.
func (s *Store) count(ctx context.Context, counter string, window time.Duration, limit int) (time.Duration, error) {
	left, err := s.scripts.count.Run(ctx, s.redis, []string{counter}, window.Milliseconds(), limit).Int64()
	if err != nil {
		return 0, unavailable("count", err)
	}
	return time.Duration(left) * time.Millisecond, nil
}

// place returns the key of the owner's running jobs, and the member that stands for the job: its id, and what tells
// requests apart.
func (s *Store) place(job export.Job) (running, member string, err error) {
	request, err := json.Marshal(job.Request)
	if err != nil {
		return "", "", fmt.Errorf("encode request: %w", err)
	}
	sum := sha256.Sum256(request)
	return "sluice:running:" + job.Owner.Key(), string(job.ID) + " " + hex.EncodeToString(sum[:16]), nil
}

// standing is what the records say about the candidates of an owner's set.
type standing struct {
	live    []export.JobID
	settled []export.JobID // of those, the ones that are queued for certain
	pending []export.JobID // admitted a moment ago, not recorded yet
	ended   []any          // members to be removed
}

// stand asks the records. found is the time, then members and since when each is there, in ms.
func (s *Store) stand(ctx context.Context, found []any) (standing, error) {
	var members []string
	var since []time.Time
	var settled []bool
	now, _ := found[0].(int64)
	for i := 1; i+1 < len(found); i += 2 {
		member, _ := found[i].(string)
		score, _ := found[i+1].(string)
		score, sure := strings.CutPrefix(score, "-")
		members, since, settled = append(members, member), append(since, instant(score)), append(settled, sure)
	}
	states := make([]*redis.StringCmd, len(members))
	_, err := s.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, member := range members {
			states[i] = pipe.HGet(ctx, key(jobOf(member), "job"), "state")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return standing{}, unavailable("read the owner's jobs", err)
	}
	var result standing
	for i, member := range members {
		state, err := states[i].Result()
		switch missing := errors.Is(err, redis.Nil); {
		case err != nil && !missing:
			return standing{}, unavailable("read the owner's jobs", err)
		case missing && !settled[i] && time.UnixMilli(now).Sub(since[i]) < recordDue:
			result.pending = append(result.pending, jobOf(member))
		case export.State(state).Live():
			result.live = append(result.live, jobOf(member))
			if settled[i] || export.State(state) != export.Scheduled { // a plan is claimed by way of the queue
				result.settled = append(result.settled, jobOf(member))
			}
		default:
			result.ended = append(result.ended, member)
		}
	}
	return result, nil
}

func jobOf(member string) export.JobID {
	id, _, _ := strings.Cut(member, " ")
	return export.JobID(id)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
