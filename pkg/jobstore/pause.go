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

// intakeKey exists while kick-offs are paused. Its TTL, if any, is the end of the pause.
const intakeKey = "sluice:intake"

// Pause is a pause of kick-offs.
type Pause struct {
	Reason string    `json:"reason,omitempty"` // for operators; clients never see it
	Since  time.Time `json:"since"`            // by the clock of the process that paused
	Until  time.Time `json:"until,omitzero"`   // by Redis' clock; zero: until ResumeKickoffs
}

// PauseKickoffs pauses kick-offs on all replicas of the API. It replaces the previous pause.
func (s *Store) PauseKickoffs(ctx context.Context, pause Pause) error {
	text, err := json.Marshal(pause)
	if err != nil {
		return fmt.Errorf("pause kick-offs: %w", err)
	}
	args := redis.SetArgs{}
	if !pause.Until.IsZero() {
		args.ExpireAt = pause.Until
	}
	return redisclient.Unavailable("pause kick-offs", s.redis.SetArgs(ctx, intakeKey, text, args).Err())
}

// ResumeKickoffs ends the pause. It is idempotent.
func (s *Store) ResumeKickoffs(ctx context.Context) error {
	return redisclient.Unavailable("resume kick-offs", s.redis.Del(ctx, intakeKey).Err())
}

// KickoffsPaused returns whether kick-offs are paused, and the pause. It is one read of Redis.
func (s *Store) KickoffsPaused(ctx context.Context) (pause Pause, paused bool, err error) {
	text, err := s.redis.Get(ctx, intakeKey).Bytes()
	if errors.Is(err, redis.Nil) {
		return Pause{}, false, nil
	}
	if err != nil {
		return Pause{}, false, redisclient.Unavailable("read the pause of kick-offs", err)
	}
	if err := json.Unmarshal(text, &pause); err != nil {
		// An unreadable pause counts as a pause.
		return Pause{}, true, fmt.Errorf("read the pause of kick-offs: %w: %w", export.ErrUnavailable, err)
	}
	return pause, true, nil
}
