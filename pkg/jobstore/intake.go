package jobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// intakeKey is there while no new jobs are taken. It may have an end of life, which is the pause's.
const intakeKey = "sluice:intake"

// Pause says that no new jobs are taken.
type Pause struct {
	Reason string    `json:"reason,omitempty"` // for operators; clients never see it
	Since  time.Time `json:"since"`            // by the clock of who paused
	Until  time.Time `json:"until,omitzero"`   // by the clock of Redis the pause ends by itself; the zero time: it does not
}

// PauseIntake has no new jobs taken, over all replicas of the API. A pause that is there already is replaced.
func (s *Store) PauseIntake(ctx context.Context, pause Pause) error {
	text, err := json.Marshal(pause)
	if err != nil {
		return fmt.Errorf("pause the intake: %w", err)
	}
	args := redis.SetArgs{}
	if !pause.Until.IsZero() {
		args.ExpireAt = pause.Until
	}
	return redisclient.Unavailable("pause the intake", s.redis.SetArgs(ctx, intakeKey, text, args).Err())
}

// ResumeIntake has new jobs taken again. It is idempotent.
func (s *Store) ResumeIntake(ctx context.Context) error {
	return redisclient.Unavailable("resume the intake", s.redis.Del(ctx, intakeKey).Err())
}

// Intake returns whether new jobs are taken, and otherwise the pause. It is one question to Redis.
func (s *Store) Intake(ctx context.Context) (pause Pause, open bool, err error) {
	text, err := s.redis.Get(ctx, intakeKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return Pause{}, true, nil
	}
	if err != nil {
		return Pause{}, false, redisclient.Unavailable("read the intake's state", err)
	}
	if err := json.Unmarshal(text, &pause); err != nil {
		// Somebody wanted it paused. That nobody can read why is no reason to open it.
		return Pause{}, false, fmt.Errorf("read the intake's state: %w: %w", export.ErrUnavailable, err)
	}
	return pause, false, nil
}
