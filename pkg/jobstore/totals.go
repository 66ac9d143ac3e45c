package jobstore

import (
	"context"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Totals are the amounts that units have committed. Units that an older release committed are not included.
type Totals struct {
	Resources int64 // lines, without those of error and deleted files
	Bytes     int64 // of these lines
	Stored    int64 // bytes in the object store, with error files and attachments
}

func totalsOf(result export.Result) Totals {
	var t Totals
	for _, file := range result.Files {
		t.Stored += file.Stored
		if !file.Error && !file.Deleted {
			t.Resources += file.Count
			t.Bytes += file.Bytes
		}
	}
	for _, pack := range result.Attachments {
		t.Stored += pack.Stored
	}
	return t
}

// Totals returns what the units of each job have committed, in the order of the ids. Unknown jobs have zero
// totals. It is one round trip: pass at most a few hundred ids.
func (s *Store) Totals(ctx context.Context, ids []export.JobID) ([]Totals, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	replies := make([]*redis.SliceCmd, len(ids))
	pipe := s.redis.Pipeline()
	for i, id := range ids {
		replies[i] = pipe.HMGet(ctx, key(id, "job"), "resources", "bytes", "stored")
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, redisclient.Unavailable("totals of jobs", err)
	}
	totals := make([]Totals, len(ids))
	for i, reply := range replies {
		t, err := totalsFrom(reply.Val())
		if err != nil {
			return nil, fmt.Errorf("totals of job %s: %w", ids[i], err)
		}
		totals[i] = t
	}
	return totals, nil
}

// Committed returns the totals of all units of all jobs ever committed in this Redis.
func (s *Store) Committed(ctx context.Context) (Totals, error) {
	fields, err := s.redis.HMGet(ctx, committed, "resources", "bytes", "stored").Result()
	if err != nil {
		return Totals{}, redisclient.Unavailable("read what is committed", err)
	}
	t, err := totalsFrom(fields)
	if err != nil {
		return Totals{}, fmt.Errorf("read what is committed: %w", err)
	}
	return t, nil
}

func totalsFrom(fields []any) (Totals, error) {
	var t Totals
	for i, to := range []*int64{&t.Resources, &t.Bytes, &t.Stored} {
		text, there := fields[i].(string)
		if !there {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Totals{}, fmt.Errorf("parse number: %w", err)
		}
		*to = n
	}
	return t, nil
}
