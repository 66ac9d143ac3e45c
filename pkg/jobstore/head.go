package jobstore

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Head returns the part of a record that decides who may see the job: ID, Owner, State and Expires. ErrNotFound when there
// is none. It costs the same for every record, so that a caller who may not see the job cannot measure it.
func (s *Store) Head(ctx context.Context, id export.JobID) (job export.Job, err error) {
	fields, err := s.redis.HMGet(ctx, key(id, "job"), "owner", "state", "expires").Result()
	if err != nil {
		return job, redisclient.Unavailable(fmt.Sprintf("read job %s", id), err)
	}
	owner, known := fields[0].(string)
	if !known {
		return job, fmt.Errorf("read job %s: %w", id, export.ErrNotFound)
	}
	state, _ := fields[1].(string)
	expires, _ := fields[2].(string)
	job = export.Job{ID: id, State: export.State(state), Expires: instant(expires)}
	if err := json.Unmarshal([]byte(owner), &job.Owner); err != nil {
		return export.Job{}, fmt.Errorf("read job %s: owner: %w", id, err)
	}
	return job, nil
}
