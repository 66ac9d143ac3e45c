package jobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Claim leases the unit to the caller, which must then call Heartbeat. ErrFenced when the fence is stale, the unit is
// closed, or the same task was delivered before; ErrNotLive when the job has ended. Claiming the plan or the seal moves the
// job to Planning or Sealing. The call may be repeated with the same token, which no other call has; "" is none.
func (s *Store) Claim(
	ctx context.Context, id export.JobID, unit export.UnitID, kind export.Kind, fence int64, token string,
) (export.Lease, error) {
	var target export.State
	switch kind {
	case export.KindPlan:
		target = export.Planning
	case export.KindSeal:
		target = export.Sealing
	default:
	}
	reply, err := s.run(ctx, "claim "+string(unit)+" of", s.scripts.claim, id,
		string(unit), fence, s.clock(), string(target), safetyTTL.Milliseconds(), token)
	if err != nil {
		return export.Lease{}, err
	}
	lease, err := decodeLease(id, reply[0], reply[1])
	if err != nil {
		return export.Lease{}, fmt.Errorf("claim %s of job %s: %w", unit, id, err)
	}
	failures, _ := reply[2].(string)
	lease.Trace, _ = reply[3].(string)
	if lease.Failures, err = strconv.Atoi(failures); err != nil {
		return export.Lease{}, fmt.Errorf("claim %s of job %s: attempts: %w", unit, id, err)
	}
	return lease, nil
}

// Heartbeat renews the lease. ErrFenced or ErrNotLive: the caller must stop.
func (s *Store) Heartbeat(ctx context.Context, lease export.Lease) error {
	_, err := s.run(ctx, "heartbeat "+string(lease.Unit.ID)+" of", s.scripts.heartbeat, lease.Job,
		string(lease.Unit.ID), lease.Fence, s.clock())
	return err
}

// stageBatch bounds the size of one script call.
const stageBatch = 500

// Stage stores units that the lease's unit has cut. They stay invisible until it commits; staging again starts over.
func (s *Store) Stage(ctx context.Context, lease export.Lease, units []export.Unit) error {
	reset := 1
	for batch := range slices.Chunk(units, stageBatch) {
		args := []any{string(lease.Unit.ID), lease.Fence, reset, safetyTTL.Milliseconds()}
		for _, unit := range batch {
			spec, err := json.Marshal(unit)
			if err != nil {
				return fmt.Errorf("encode unit %s: %w", unit.ID, err)
			}
			args = append(args, string(unit.ID), spec, unit.Bytes)
		}
		if _, err := s.run(ctx, "stage units of", s.scripts.stage, lease.Job, args...); err != nil {
			return err
		}
		reset = 0
	}
	if len(units) > 0 {
		return nil
	}
	_, err := s.run(ctx, "stage units of", s.scripts.stage, lease.Job,
		string(lease.Unit.ID), lease.Fence, 1, safetyTTL.Milliseconds())
	return err
}

// Commit holds the result of a unit and the changes to its job.
type Commit struct {
	Result export.Result
	// Next is the unit to open if this commit empties the open set; the zero Unit for none.
	Next export.Unit
	// Plan, when set, is the outcome of the plan; the job moves to Running.
	Plan *Plan
	// Seal, when set, completes the job.
	Seal *Seal
}

// Plan is the part of a job that its plan decides.
type Plan struct {
	Snapshot time.Time
	Cohort   export.Cohort
	Data     string // export.Job.Data
}

// Seal is what completes a job.
type Seal struct {
	Manifest string
	Digest   string // SHA-256 of the manifest, lower-case hex
	// Resources is export.Job.Resources.
	Resources []export.Numbers
	Finished  time.Time
	Expires   time.Time
}

// Commit closes the unit with its result, once; a repetition with the same result succeeds. ErrFenced when the lease is
// lost, ErrNotLive when the job has ended: nothing has changed then, and the caller's objects are garbage.
func (s *Store) Commit(ctx context.Context, lease export.Lease, c Commit) error {
	result, err := json.Marshal(c.Result)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	next, err := json.Marshal(c.Next)
	if err != nil {
		return fmt.Errorf("encode unit %s: %w", c.Next.ID, err)
	}
	weight := lease.Unit.Bytes
	if !lease.Unit.Kind.Writes() {
		weight = -1 // only exports count as progress
	}

	var target export.State
	var fields []any
	due, ttl := "", safetyTTL.Milliseconds()
	if c.Plan != nil {
		target = export.Running
		cohort, err := json.Marshal(c.Plan.Cohort)
		if err != nil {
			return fmt.Errorf("encode cohort: %w", err)
		}
		fields = append(fields, "snapshot", millis(c.Plan.Snapshot), "cohort", cohort, "data", c.Plan.Data)
	}
	if c.Seal != nil {
		target = export.Completed
		numbers, err := json.Marshal(c.Seal.Resources)
		if err != nil {
			return fmt.Errorf("encode numbers of resources: %w", err)
		}
		fields = append(fields, "numbers", numbers, "manifest", c.Seal.Manifest, "manifest_sha256", c.Seal.Digest, "percent", 100,
			"finished", millis(c.Seal.Finished), "expires", millis(c.Seal.Expires))
		due, ttl = strconv.FormatInt(millis(c.Seal.Expires), 10), s.ttlFrom(c.Seal.Expires)
	}
	args := []any{
		string(lease.Unit.ID), lease.Fence, result, weight, string(target), string(c.Next.ID), next,
	}
	made := totalsOf(c.Result)
	args = append(args, made.Resources, made.Bytes, made.Stored, due, ttl, len(c.Result.Files))
	for _, file := range c.Result.Files {
		args = append(args, file.Name)
	}
	_, err = s.run(ctx, "commit "+string(lease.Unit.ID)+" of", s.scripts.commit, lease.Job, append(args, fields...)...)
	return err
}

// Issue takes waiting units, the largest first, until most are outstanding, and returns them to be enqueued. If the caller
// dies before it has enqueued them, RescueStale returns them.
func (s *Store) Issue(ctx context.Context, id export.JobID, most int) ([]export.Lease, error) {
	reply, err := s.run(ctx, "issue units of", s.scripts.issue, id, most, s.clock())
	if err != nil {
		return nil, err
	}
	var issued []export.Lease
	for pair := range slices.Chunk(reply, 2) {
		lease, err := decodeLease(id, pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("issue units of job %s: %w", id, err)
		}
		issued = append(issued, lease)
	}
	return issued, nil
}

// causeField, appended to a unit's id, is the field of the attempts hash with the cause of its last release or loss. Ids of
// units contain no dot. The purge of an older scheduler would not delete a separate key.
const causeField = ".cause"

// Release gives the unit back under a new fence, to run after the delay. A failed attempt (CauseError) counts against the
// unit; an unavailable dependency or a stopping worker does not. It returns the new fence, which has to be enqueued. It may
// be repeated.
func (s *Store) Release(
	ctx context.Context, lease export.Lease, delay time.Duration, cause export.Cause,
) (fence int64, err error) {
	count := 0
	if cause == export.CauseError {
		count = 1
	}
	reply, err := s.run(ctx, "release "+string(lease.Unit.ID)+" of", s.scripts.release, lease.Job,
		string(lease.Unit.ID), lease.Fence, s.clock(), delay.Milliseconds(), count, string(cause))
	if err != nil {
		return 0, err
	}
	fence, _ = reply[0].(int64)
	return fence, nil
}

// Refence gives an issued, unclaimed unit a new fence: its task left the queue and never claimed the unit. ErrFenced when
// it was claimed, closed or refenced meanwhile.
func (s *Store) Refence(ctx context.Context, id export.JobID, unit export.UnitID, fence int64) (int64, error) {
	reply, err := s.run(ctx, "refence "+string(unit)+" of", s.scripts.refence, id, string(unit), fence, s.clock())
	if err != nil {
		return 0, err
	}
	fresh, _ := reply[0].(int64)
	return fresh, nil
}

// outageGap is the time without NoteReachable after which Redis counts as having been away.
const outageGap = 3 * time.Second

// NoteReachable notes that Redis can be reached. A scheduler calls it every second.
func (s *Store) NoteReachable(ctx context.Context) error {
	err := s.scripts.reachable.Run(ctx, s.redis, []string{outageKey}, s.clock(), outageGap.Milliseconds()).Err()
	return redisclient.Unavailable("note that redis is reachable", err)
}

// RescueStale takes up to most units without a heartbeat for as long as silence and marks them as heard of now. A claimed
// unit gets a new fence (lost), and the loss counts as an attempt unless its worker turns up again; the task of an
// unclaimed one may be lost. All have to be enqueued again. After an outage of Redis, the silence of claimed units counts
// from its end.
func (s *Store) RescueStale(
	ctx context.Context, id export.JobID, silence time.Duration, most int,
) (lost, unclaimed []export.Lease, err error) {
	reply, err := s.run(ctx, "rescue units of", s.scripts.rescue, id, s.clock(), silence.Milliseconds(), most,
		outageGap.Milliseconds())
	if err != nil {
		return nil, nil, err
	}
	for row := range slices.Chunk(reply, 4) {
		lease, err := decodeLease(id, row[0], row[1])
		if err != nil {
			return nil, nil, fmt.Errorf("rescue units of job %s: %w", id, err)
		}
		failures, _ := row[2].(string)
		if lease.Failures, err = strconv.Atoi(failures); err != nil {
			return nil, nil, fmt.Errorf("rescue units of job %s: attempts: %w", id, err)
		}
		if row[3] == "1" {
			lost = append(lost, lease)
		} else {
			unclaimed = append(unclaimed, lease)
		}
	}
	return lost, unclaimed, nil
}

// decodeLease reads a unit at a fence as the scripts return it: what a worker gets when it claims the unit.
func decodeLease(id export.JobID, fence, spec any) (export.Lease, error) {
	lease := export.Lease{Job: id}
	text, _ := spec.(string)
	number, _ := fence.(string)
	if err := json.Unmarshal([]byte(text), &lease.Unit); err != nil {
		return export.Lease{}, err
	}
	var err error
	if lease.Fence, err = strconv.ParseInt(number, 10, 64); err != nil {
		return export.Lease{}, fmt.Errorf("fence: %w", err)
	}
	return lease, nil
}

// Reopen runs a unit again at once, under a new fence and with all its attempts: a failed unit if no later stage is
// claimed, a claimed unit, whose worker loses it, or a delayed unit. The unit has to be enqueued; if the caller dies
// before, RescueStale returns it. ErrNotFound when there is no such unit; ErrNotLive when the job has ended; ErrConflict
// when the unit is done, waits for its stage, or a later stage has begun.
func (s *Store) Reopen(ctx context.Context, id export.JobID, unit export.UnitID) (export.Lease, error) {
	act := "retry " + string(unit) + " of"
	reply, err := s.run(ctx, act, s.scripts.reopen, id, string(unit), s.clock())
	if err != nil {
		return export.Lease{}, err
	}
	fence, _ := reply[0].(int64)
	lease, err := decodeLease(id, strconv.FormatInt(fence, 10), reply[1])
	if err != nil {
		return export.Lease{}, fmt.Errorf("%s job %s: %w", act, id, err)
	}
	return lease, nil
}

// GiveUp closes an open unit as failed with the reason, even if a worker has claimed it; next is the unit to open if no
// unit is left open. It is idempotent with the same reason. ErrNotFound when there is no such unit; ErrNotLive when the job
// has ended; ErrConflict when the unit is closed.
func (s *Store) GiveUp(ctx context.Context, id export.JobID, unit export.UnitID, reason string, next export.Unit) error {
	result, err := json.Marshal(export.Result{Failure: reason})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	spec, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode unit %s: %w", next.ID, err)
	}
	_, err = s.run(ctx, "give up "+string(unit)+" of", s.scripts.giveup, id, string(unit), result, string(next.ID), spec)
	return err
}

// Unit returns a unit of the job. ErrNotFound when there is none of that id.
func (s *Store) Unit(ctx context.Context, id export.JobID, unit export.UnitID) (export.Unit, error) {
	text, err := s.redis.HGet(ctx, key(id, "units"), string(unit)).Bytes()
	if errors.Is(err, redis.Nil) {
		return export.Unit{}, fmt.Errorf("unit %s of job %s: %w", unit, id, export.ErrNotFound)
	}
	if err != nil {
		return export.Unit{}, redisclient.Unavailable(fmt.Sprintf("unit %s of job %s", unit, id), err)
	}
	var found export.Unit
	if err := json.Unmarshal(text, &found); err != nil {
		return export.Unit{}, fmt.Errorf("unit %s of job %s: %w", unit, id, err)
	}
	return found, nil
}

// Result returns the result of a closed unit. ErrNotFound when the unit is not closed.
func (s *Store) Result(ctx context.Context, id export.JobID, unit export.UnitID) (export.Result, error) {
	text, err := s.redis.HGet(ctx, key(id, "results"), string(unit)).Result()
	if errors.Is(err, redis.Nil) {
		return export.Result{}, fmt.Errorf("result of %s of job %s: %w", unit, id, export.ErrNotFound)
	}
	if err != nil {
		return export.Result{}, redisclient.Unavailable(fmt.Sprintf("result of %s of job %s", unit, id), err)
	}
	var result export.Result
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		return export.Result{}, fmt.Errorf("result of %s of job %s: %w", unit, id, err)
	}
	return result, nil
}

// Results yields every closed unit with its result, in the order of the units' ids. It holds the ids of the job's
// units, and one page of results at a time.
func (s *Store) Results(
	ctx context.Context, id export.JobID, yield func(export.Unit, export.Result) error,
) error {
	act := fmt.Sprintf("results of job %s", id)
	ids, err := s.redis.HKeys(ctx, key(id, "results")).Result()
	if err != nil {
		return redisclient.Unavailable(act, err)
	}
	slices.Sort(ids)
	for page := range slices.Chunk(ids, 200) {
		units, err := s.redis.HMGet(ctx, key(id, "units"), page...).Result()
		if err != nil {
			return redisclient.Unavailable(act, err)
		}
		results, err := s.redis.HMGet(ctx, key(id, "results"), page...).Result()
		if err != nil {
			return redisclient.Unavailable(act, err)
		}
		for i := range page {
			var unit export.Unit
			var result export.Result
			spec, _ := units[i].(string)
			text, _ := results[i].(string)
			if err := errors.Join(json.Unmarshal([]byte(spec), &unit), json.Unmarshal([]byte(text), &result)); err != nil {
				return fmt.Errorf("%s: unit %s: %w", act, page[i], err)
			}
			if err := yield(unit, result); err != nil {
				return err
			}
		}
	}
	return nil
}
