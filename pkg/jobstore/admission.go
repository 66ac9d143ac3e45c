package jobstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// FirstFence is the fence of a new job's first unit.
const FirstFence = 1

// Admission limits the live jobs of an owner.
type Admission struct {
	Limit int  // live jobs at once
	Join  bool // a request identical to that of a live job joins that job
}

// FullError refuses a job whose owner has as many live ones as allowed.
type FullError struct{ Running []export.JobID }

func (e FullError) Error() string { return fmt.Sprintf("the owner has %d live jobs", len(e.Running)) }

const (
	// joinWait is how long a kick-off waits until an identical one is queued or removed.
	joinWait = time.Second
	// ownerTTL is the TTL of an owner's set, renewed by each kick-off: longer than any job may run.
	ownerTTL = safetyTTL
)

// Admit checks whether Create would record the job. It returns the job's id, or, with Join, that of a live job with the
// same request. FullError when the owner is at the limit; ErrUnavailable when an identical job is still being started.
func (s *Store) Admit(ctx context.Context, job export.Job, admission Admission) (export.JobID, error) {
	return s.create(ctx, job, export.Unit{}, admission, true)
}

// Create records a job with its first unit, issued at fence 1, and adds it to its owner's live jobs. It makes the same
// checks as Admit, because another kick-off may have been faster. It is idempotent. ErrConflict when the id was removed.
func (s *Store) Create(
	ctx context.Context, job export.Job, first export.Unit, admission Admission,
) (export.JobID, error) {
	return s.create(ctx, job, first, admission, false)
}

func (s *Store) create(
	ctx context.Context, job export.Job, first export.Unit, admission Admission, checkOnly bool,
) (export.JobID, error) {
	owner, err := json.Marshal(job.Owner)
	if err != nil {
		return "", fmt.Errorf("encode owner: %w", err)
	}
	request, err := json.Marshal(job.Request)
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	unit, err := json.Marshal(first)
	if err != nil {
		return "", fmt.Errorf("encode unit: %w", err)
	}
	identity, err := identityOf(job.Request)
	if err != nil {
		return "", err
	}
	args := []any{
		job.Owner.Key(), identity, admission.Limit, admission.Join, checkOnly,
		s.clock(), ownerTTL.Milliseconds(), string(first.ID), unit,
		"state", string(job.State), "owner", owner, requestField(job.Request), request, "created", millis(job.Created),
	}
	if len(job.Key) > 0 {
		args = append(args, "key", job.Key)
	}
	if job.Trace != "" {
		args = append(args, "trace", job.Trace)
	}
	for begun := time.Now(); ; {
		reply, err := s.scripts.create.Run(ctx, s.redis, keysOf(job.ID), args...).StringSlice()
		if err != nil {
			return "", redisclient.Unavailable(fmt.Sprintf("create job %s", job.ID), err)
		}
		switch reply[0] {
		case "OK":
			return job.ID, nil
		case "SAME":
			return export.JobID(reply[1]), nil
		case "FULL":
			var full FullError
			for _, id := range reply[1:] {
				full.Running = append(full.Running, export.JobID(id))
			}
			return "", full
		case "PENDING":
			// The identical job is removed if it cannot be queued, so its id must not be returned yet.
			if time.Since(begun) > joinWait {
				return "", fmt.Errorf("create job %s: an identical one is being started: %w", job.ID, export.ErrUnavailable)
			}
			if err := pause(ctx, joinWait/20); err != nil {
				return "", redisclient.Unavailable(fmt.Sprintf("create job %s", job.ID), err)
			}
		default:
			return "", fmt.Errorf("create job %s: %w: %s", job.ID, export.ErrConflict, reply[1])
		}
	}
}

// requestField returns the field of the record that holds the request. Workers of versions that know only the export of a
// group read "request" alone: they cannot take a request that they would misread, and retry until a newer worker does.
func requestField(r export.Request) string {
	if r.Plain() {
		return "request"
	}
	return "request_2"
}

// identityOf returns what identical kick-offs share: a hash of the whole request. The key of the list of patients names the
// job, so the list counts by its digest.
func identityOf(request export.Request) (string, error) {
	if request.Asked != nil {
		asked := *request.Asked
		asked.Key = ""
		request.Asked = &asked
	}
	text, err := json.Marshal(request)
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16]), nil
}

// Queued marks a job as queued: identical kick-offs may join it from now on. Otherwise they may join when its plan is
// claimed.
func (s *Store) Queued(ctx context.Context, id export.JobID) error {
	_, err := s.run(ctx, "mark as queued", s.scripts.queued, id)
	return err
}

// Allow increments the owner's counter and returns the remaining wait when the limit of the window is exceeded, or 0.
func (s *Store) Allow(
	ctx context.Context, what string, owner export.Owner, window time.Duration, limit int,
) (wait time.Duration, err error) {
	wait, err = s.count(ctx, "sluice:rate:"+what+":"+owner.Key(), window, limit)
	if err != nil {
		return 0, fmt.Errorf("count %s of an owner: %w", what, err)
	}
	return wait, nil
}

// count increments a counter. Its window begins with the first count after the end of the last window, and is its TTL.
func (s *Store) count(ctx context.Context, counter string, window time.Duration, limit int) (time.Duration, error) {
	left, err := s.scripts.count.Run(ctx, s.redis, []string{counter}, window.Milliseconds(), limit).Int64()
	if err != nil {
		return 0, redisclient.Unavailable("count", err)
	}
	return time.Duration(left) * time.Millisecond, nil
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
