package ops

import (
	"context"
	"errors"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Kickoffs reports whether kick-offs are accepted or paused.
type Kickoffs struct {
	Open   bool      `json:"open"`
	Since  time.Time `json:"since,omitzero"` // this and what follows: of the pause
	Until  time.Time `json:"until,omitzero"` // zero: until they are resumed
	Reason string    `json:"reason,omitempty"`
}

// Kickoffs returns whether kick-offs are accepted.
func (o *Operator) Kickoffs(ctx context.Context) (Kickoffs, error) {
	pause, paused, err := o.Jobs.KickoffsPaused(ctx)
	return Kickoffs{Open: !paused && err == nil, Since: pause.Since.UTC(), Until: pause.Until.UTC(), Reason: pause.Reason}, err
}

// reasonMost is the maximum length of a reason, in characters.
const reasonMost = 200

// PauseKickoffs refuses kick-offs (503 with Retry-After) on every replica of the API until an instant; the zero time is
// until ResumeKickoffs. Only operators and the audit log see the reason. A pause replaces the previous one.
func (o *Operator) PauseKickoffs(ctx context.Context, reason string, until time.Time) error {
	now := o.Now().UTC()
	if err := CheckReason(reason); err != nil {
		return err
	}
	if !until.IsZero() && !until.After(now) {
		return errors.New("the end of the pause is in the past")
	}
	target := "pause of the intake"
	if !until.IsZero() {
		target += " until " + until.UTC().Format(time.RFC3339)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: target, Reason: reason}, func() error {
		pause := jobstore.Pause{Reason: reason, Since: now.Truncate(time.Millisecond), Until: until.UTC()}
		return o.Jobs.PauseKickoffs(ctx, pause)
	})
}

// CheckReason refuses a reason that is too long, or is more than one line of text.
func CheckReason(reason string) error {
	if utf8.RuneCountInString(reason) > reasonMost {
		return errors.New("the reason has more than 200 characters")
	}
	for _, r := range reason {
		if !unicode.IsPrint(r) {
			return errors.New("the reason is not one line of text")
		}
	}
	return nil
}

// ResumeKickoffs accepts kick-offs again. It is idempotent.
func (o *Operator) ResumeKickoffs(ctx context.Context) error {
	return o.change(audit.Event{Action: audit.Admin, Target: "resumption of the intake"}, func() error {
		return o.Jobs.ResumeKickoffs(ctx)
	})
}
