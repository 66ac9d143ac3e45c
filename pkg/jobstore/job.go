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
)

// Create records a job with its first unit, issued at fence 1. The index entry comes first: an entry without a job is
// harmless, a job without an entry would never be rescued or purged. ErrConflict when the id is taken.
func (s *Store) Create(ctx context.Context, job export.Job, first export.Unit) error {
	owner, err := json.Marshal(job.Owner)
	if err != nil {
		return fmt.Errorf("encode owner: %w", err)
	}
	request, err := json.Marshal(job.Request)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	unit, err := json.Marshal(first)
	if err != nil {
		return fmt.Errorf("encode unit: %w", err)
	}
	if err := s.enter(ctx, job.ID); err != nil {
		return err
	}
	args := []any{
		string(first.ID), unit, s.clock(),
		"state", string(job.State), "owner", owner, "request", request, "created", millis(job.Created),
	}
	if len(job.Key) > 0 {
		args = append(args, "key", job.Key)
	}
	if job.Trace != "" {
		args = append(args, "trace", job.Trace)
	}
	_, err = s.run(ctx, "create", s.scripts.create, job.ID, args...)
	return err
}

// Key returns the job's wrapped data key, empty when its objects are not encrypted. ErrNotFound when there is no such
// job: its key went with it.
func (s *Store) Key(ctx context.Context, id export.JobID) ([]byte, error) {
	fields, err := s.redis.HMGet(ctx, key(id, "job"), "state", "key").Result()
	if err != nil {
		return nil, unavailable(fmt.Sprintf("read key of job %s", id), err)
	}
	if fields[0] == nil {
		return nil, fmt.Errorf("read key of job %s: %w", id, export.ErrNotFound)
	}
	wrapped, _ := fields[1].(string)
	return []byte(wrapped), nil
}

// Job returns the record. ErrNotFound when there is none; expiry is the caller's business (Job.Visible).
func (s *Store) Job(ctx context.Context, id export.JobID) (export.Job, error) {
	fields, err := s.redis.HGetAll(ctx, key(id, "job")).Result()
	if err != nil {
		return export.Job{}, unavailable(fmt.Sprintf("read job %s", id), err)
	}
	if len(fields) == 0 {
		return export.Job{}, fmt.Errorf("read job %s: %w", id, export.ErrNotFound)
	}
	return decodeJob(id, fields)
}

func decodeJob(id export.JobID, fields map[string]string) (job export.Job, err error) {
	job = export.Job{
		ID:       id,
		State:    export.State(fields["state"]),
		Created:  instant(fields["created"]),
		Snapshot: instant(fields["snapshot"]),
		Finished: instant(fields["finished"]),
		Expires:  instant(fields["expires"]),
		Failure:  fields["failure"],
		Manifest: fields["manifest"],
		Key:      []byte(fields["key"]),
		Trace:    fields["trace"],
	}
	if percent := fields["percent"]; percent != "" {
		if job.Percent, err = strconv.Atoi(percent); err != nil {
			return export.Job{}, fmt.Errorf("read job %s: percent: %w", id, err)
		}
	}
	err = errors.Join(
		json.Unmarshal([]byte(fields["owner"]), &job.Owner),
		json.Unmarshal([]byte(fields["request"]), &job.Request),
	)
	if cohort := fields["cohort"]; cohort != "" {
		err = errors.Join(err, json.Unmarshal([]byte(cohort), &job.Cohort))
	}
	if err != nil {
		return export.Job{}, fmt.Errorf("read job %s: %w", id, err)
	}
	return job, nil
}

// Cancel makes the job its owner's no more: from here on it is not there, its running units stop at their next
// heartbeat, and it is due to be purged. ErrNotFound, or ErrConflict when it is cancelled or expired already.
func (s *Store) Cancel(ctx context.Context, id export.JobID, now time.Time) error {
	return s.end(ctx, "cancel", id, export.Lease{}, export.Cancelled, now)
}

// Fail ends a job that cannot produce anything. Its owner sees the reason until the job expires. ErrConflict when it
// has ended already.
func (s *Store) Fail(ctx context.Context, id export.JobID, reason string, now, expires time.Time) error {
	return s.fail(ctx, id, export.Lease{}, reason, now, expires)
}

// FailUnit is Fail in the name of a unit without which the job is nothing. ErrFenced when the lease is lost: then
// another attempt decides.
func (s *Store) FailUnit(ctx context.Context, lease export.Lease, reason string, now, expires time.Time) error {
	return s.fail(ctx, lease.Job, lease, reason, now, expires)
}

func (s *Store) fail(
	ctx context.Context, id export.JobID, lease export.Lease, reason string, now, expires time.Time,
) error {
	return s.end(ctx, "fail", id, lease, export.Failed, expires,
		"failure", reason, "finished", millis(now), "expires", millis(expires))
}

// Expire marks a finished job as expired, due to be purged now. ErrConflict when it is not finished or gone already.
func (s *Store) Expire(ctx context.Context, id export.JobID, now time.Time) error {
	return s.end(ctx, "expire", id, export.Lease{}, export.Expired, now)
}

// end moves a job to a state in which no work is left. The job is entered in the active index around the step: should
// the process die before the due index is set, the scheduler finds the ended job there and sets it.
func (s *Store) end(
	ctx context.Context, act string, id export.JobID, lease export.Lease, to export.State, due time.Time, fields ...any,
) error {
	if err := s.enter(ctx, id); err != nil {
		return err
	}
	args := append([]any{string(to), string(lease.Unit.ID), lease.Fence}, fields...)
	if _, err := s.run(ctx, act, s.scripts.move, id, args...); err != nil {
		return err
	}
	return s.SetDue(ctx, id, due)
}

// Remove forgets a job entirely: every key first, then the index entries, so that a death in between leaves an entry
// that leads the scheduler back here. It is idempotent.
func (s *Store) Remove(ctx context.Context, id export.JobID) error {
	if err := s.redis.Unlink(ctx, keysOf(id)...).Err(); err != nil {
		return unavailable(fmt.Sprintf("remove job %s", id), err)
	}
	if err := s.redis.ZRem(ctx, dueIndex, string(id)).Err(); err != nil {
		return unavailable(fmt.Sprintf("remove job %s from the due index", id), err)
	}
	if err := s.redis.ZRem(ctx, activeIndex, string(id)).Err(); err != nil {
		return unavailable(fmt.Sprintf("remove job %s from the active index", id), err)
	}
	return nil
}

// File returns a file that a unit of the job has committed. ErrNotFound when there is none of that name.
func (s *Store) File(ctx context.Context, id export.JobID, name string) (export.File, error) {
	missing := fmt.Errorf("file of job %s: %w", id, export.ErrNotFound)
	unit, err := s.redis.HGet(ctx, key(id, "files"), name).Result()
	if errors.Is(err, redis.Nil) {
		return export.File{}, missing
	}
	if err != nil {
		return export.File{}, unavailable(fmt.Sprintf("find file of job %s", id), err)
	}
	result, err := s.Result(ctx, id, export.UnitID(unit))
	if err != nil {
		return export.File{}, err
	}
	for _, file := range result.Files {
		if file.Name == name {
			return file, nil
		}
	}
	return export.File{}, missing
}

// AllowPoll counts a status poll. It returns how long the client has to wait when it has asked more than limit times
// in the window, and zero when the poll is allowed.
func (s *Store) AllowPoll(
	ctx context.Context, id export.JobID, window time.Duration, limit int,
) (wait time.Duration, err error) {
	wait, err = s.count(ctx, key(id, "polls"), window, limit)
	if err != nil {
		return 0, fmt.Errorf("count polls of job %s: %w", id, err)
	}
	return wait, nil
}
