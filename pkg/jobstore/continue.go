package jobstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// continueTTL is how long an export can be continued from its transactionTime: longer than a year between two exports.
const continueTTL = 400 * 24 * time.Hour

// continueKey is the key of the snapshot behind a transactionTime that the owner of a job is given, in whole seconds. The
// scope of a continuation is the level and the group (spec 9).
func continueKey(owner export.Owner, request export.Request, at time.Time) string {
	scope := sha256.Sum256(fmt.Appendf(nil, "%s %s %s", owner.Key(), request.AtLevel(), request.GroupID))
	return fmt.Sprintf("sluice:continue:%x:%d", scope[:16], at.Unix())
}

// NoteTransactionTime stores the snapshot behind the transactionTime that the manifest of the job will have. Of several
// exports with the same one the earliest snapshot counts. Call it before the seal: a time that nobody is given does no
// harm.
func (s *Store) NoteTransactionTime(ctx context.Context, job export.Job, at time.Time) error {
	err := s.scripts.earliest.Run(ctx, s.redis, []string{continueKey(job.Owner, job.Request, at)}, millis(job.Snapshot),
		continueTTL.Milliseconds()).Err()
	return redisclient.Unavailable("note a transaction time", err)
}

// Continues returns the snapshot of the export whose transactionTime is the instant, if the owner was given one for the
// level and group of the request.
func (s *Store) Continues(
	ctx context.Context, owner export.Owner, request export.Request, since time.Time,
) (snapshot time.Time, found bool, err error) {
	if !since.Equal(since.Truncate(time.Second)) {
		return time.Time{}, false, nil
	}
	return s.snapshotAt(ctx, continueKey(owner, request, since))
}

func (s *Store) snapshotAt(ctx context.Context, key string) (time.Time, bool, error) {
	text, err := s.redis.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, redisclient.Unavailable("look up a transaction time", err)
	}
	at, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("look up a transaction time: %w", err)
	}
	return time.UnixMilli(at).UTC(), true, nil
}
