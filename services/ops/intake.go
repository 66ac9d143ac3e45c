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

// Intake says whether new jobs are taken.
type Intake struct {
	Open  bool
	Pause jobstore.Pause // when it is not open
}

// Intake returns whether new jobs are taken.
func (o *Operator) Intake(ctx context.Context) (Intake, error) {
	pause, open, err := o.Jobs.Intake(ctx)
	return Intake{Open: open, Pause: pause}, err
}

// reasonMost is how many characters a reason may have.
const reasonMost = 200

// PauseIntake has kick-offs refused (503 with Retry-After) by every replica of the API, until an instant or, for the zero
// time, until it is resumed. Jobs that there are go on, and so do status, files and cancel. The reason is for operators
// and the audit log alone. A pause that is there already is replaced.
func (o *Operator) PauseIntake(ctx context.Context, reason string, until time.Time) error {
	now := o.Now().UTC()
	if err := CheckReason(reason); err != nil {
		return err
	}
	if !until.IsZero() && !until.After(now) {
		return errors.New("the end of the pause is over already")
	}
	target := "pause of the intake"
	if !until.IsZero() {
		target += " until " + until.UTC().Format(time.RFC3339)
	}
	return o.change(audit.Event{Action: audit.Admin, Target: target, Reason: reason}, func() error {
		return o.Jobs.PauseIntake(ctx, jobstore.Pause{Reason: reason, Since: now.Truncate(time.Millisecond), Until: until.UTC()})
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

// ResumeIntake has kick-offs taken again. It is idempotent.
func (o *Operator) ResumeIntake(ctx context.Context) error {
	return o.change(audit.Event{Action: audit.Admin, Target: "resumption of the intake"}, func() error {
		return o.Jobs.ResumeIntake(ctx)
	})
}
