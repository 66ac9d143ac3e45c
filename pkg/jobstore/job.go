package jobstore

import (
	"cmp"
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

// Key returns the job's wrapped data key, empty when its objects are not encrypted, and the job's owner. ErrNotFound when
// there is no such job: its key was deleted with it.
func (s *Store) Key(ctx context.Context, id export.JobID) (wrapped []byte, owner export.Owner, err error) {
	fields, err := s.redis.HMGet(ctx, key(id, "job"), "state", "key", "owner").Result()
	if err != nil {
		return nil, owner, redisclient.Unavailable(fmt.Sprintf("read key of job %s", id), err)
	}
	if fields[0] == nil {
		return nil, owner, fmt.Errorf("read key of job %s: %w", id, export.ErrNotFound)
	}
	text, _ := fields[1].(string)
	whose, _ := fields[2].(string)
	if err := json.Unmarshal([]byte(whose), &owner); err != nil {
		return nil, owner, fmt.Errorf("read key of job %s: owner: %w", id, err)
	}
	return []byte(text), owner, nil
}

// Job returns the record. ErrNotFound when there is none. It does not check expiry: see Job.Visible.
func (s *Store) Job(ctx context.Context, id export.JobID) (export.Job, error) {
	fields, err := s.redis.HGetAll(ctx, key(id, "job")).Result()
	if err != nil {
		return export.Job{}, redisclient.Unavailable(fmt.Sprintf("read job %s", id), err)
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
		Digest:   fields["manifest_sha256"],
		Key:      []byte(fields["key"]),
		Trace:    fields["trace"],
		Data:     fields["data"],

		Unconfirmed: fields["unconfirmed"] != "",
	}
	if percent := fields["percent"]; percent != "" {
		if job.Percent, err = strconv.Atoi(percent); err != nil {
			return export.Job{}, fmt.Errorf("read job %s: percent: %w", id, err)
		}
	}
	err = errors.Join(
		json.Unmarshal([]byte(fields["owner"]), &job.Owner),
		json.Unmarshal([]byte(cmp.Or(fields["request_2"], fields["request"])), &job.Request), // requestField
	)
	for field, to := range map[string]any{"cohort": &job.Cohort, "numbers": &job.Resources} {
		if text := fields[field]; text != "" {
			err = errors.Join(err, json.Unmarshal([]byte(text), to))
		}
	}
	if err != nil {
		return export.Job{}, fmt.Errorf("read job %s: %w", id, err)
	}
	return job, nil
}

// Cancel hides the job from its owner. Its running units stop at their next heartbeat, and it is due to be purged. It is
// idempotent. ErrNotFound, or ErrConflict when the job has expired.
func (s *Store) Cancel(ctx context.Context, id export.JobID, now time.Time) error {
	return s.end(ctx, "cancel", id, export.Lease{}, export.Cancelled, now)
}

// FailJob ends a job that cannot produce anything. Its owner sees the reason until the job expires. It is idempotent.
// ErrConflict when the job has ended in another way.
func (s *Store) FailJob(ctx context.Context, id export.JobID, reason string, now, expires time.Time) error {
	return s.FailJobFrom(ctx, export.Lease{Job: id}, reason, now, expires)
}

// FailJobFrom is FailJob by the holder of a lease on the plan or the seal, without which there is no export. ErrFenced
// when the lease is lost: then another attempt decides.
func (s *Store) FailJobFrom(ctx context.Context, lease export.Lease, reason string, now, expires time.Time) error {
	return s.end(ctx, "fail", lease.Job, lease, export.Failed, expires,
		"failure", reason, "finished", millis(now), "expires", millis(expires))
}

// Expire marks a finished job as expired, due to be purged since the instant. It is idempotent. ErrConflict when the job is
// live or cancelled.
func (s *Store) Expire(ctx context.Context, id export.JobID, due time.Time) error {
	return s.end(ctx, "expire", id, export.Lease{}, export.Expired, due)
}

// end moves a job to an ended state and into the due index.
func (s *Store) end(
	ctx context.Context, act string, id export.JobID, lease export.Lease, to export.State, due time.Time, fields ...any,
) error {
	args := append([]any{string(to), string(lease.Unit.ID), lease.Fence, millis(due), s.ttlFrom(due)}, fields...)
	_, err := s.run(ctx, act, s.scripts.end, id, args...)
	return err
}

// ttlFrom is the safety TTL, in ms, of a job that is due at the instant.
func (s *Store) ttlFrom(due time.Time) int64 {
	now := time.Now
	if s.now != nil {
		now = s.now
	}
	return (max(due.Sub(now()), 0) + endedTTL).Milliseconds()
}

// Remove deletes a job: record, units and index entries. It is idempotent. A Create of this id that arrives later is
// refused.
func (s *Store) Remove(ctx context.Context, id export.JobID) error {
	_, err := s.run(ctx, "remove", s.scripts.remove, id, removedTTL.Milliseconds(), 0)
	return err
}

// RemoveUnconfirmed removes a job whose kick-off was not confirmed by Queued: its client has got an error, or none.
// ErrConflict when it was confirmed or has begun.
func (s *Store) RemoveUnconfirmed(ctx context.Context, id export.JobID) error {
	_, err := s.run(ctx, "remove unconfirmed", s.scripts.remove, id, removedTTL.Milliseconds(), 1)
	return err
}

// Removed reports whether a job without a record was removed lately or is still in the index of ended jobs. If not, Redis
// may have lost it.
func (s *Store) Removed(ctx context.Context, id export.JobID) (bool, error) {
	marks, err := s.redis.Exists(ctx, key(id, "removed")).Result()
	if err == nil && marks == 0 {
		err = s.redis.ZScore(ctx, dueIndex, string(id)).Err()
		if errors.Is(err, redis.Nil) {
			return false, nil
		}
	}
	if err != nil {
		return false, redisclient.Unavailable(fmt.Sprintf("look up the removal of job %s", id), err)
	}
	return true, nil
}

// File returns a file that a unit of the job has committed. ErrNotFound when there is none of that name.
func (s *Store) File(ctx context.Context, id export.JobID, name string) (export.File, error) {
	missing := fmt.Errorf("file of job %s: %w", id, export.ErrNotFound)
	unit, err := s.redis.HGet(ctx, key(id, "files"), name).Result()
	if errors.Is(err, redis.Nil) {
		return export.File{}, missing
	}
	if err != nil {
		return export.File{}, redisclient.Unavailable(fmt.Sprintf("find file of job %s", id), err)
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

// AllowPoll counts a status poll. It returns how long the client must wait if there were more than limit polls in the
// window, or zero if the poll is allowed.
func (s *Store) AllowPoll(
	ctx context.Context, id export.JobID, window time.Duration, limit int,
) (wait time.Duration, err error) {
	wait, err = s.count(ctx, key(id, "polls"), window, limit)
	if err != nil {
		return 0, fmt.Errorf("count polls of job %s: %w", id, err)
	}
	return wait, nil
}
