// Package ops has the operator's use cases: jobs and units, the pause of kick-offs, workers, queues, and a check of
// everything that a deployment depends on. The command line and the operator's page present it.
//
// A change is recorded in the audit log first, and is not made when it cannot be recorded. A change to a job is one
// compare-and-set step in the job store. It may be repeated, or be interrupted: a scheduler completes it.
//
// Results contain no patient data and no subject: owners appear as export.Owner.Key, errors as their class.
//
// Errors: export.ErrNotFound, ErrNotLive (the job has ended), ErrConflict (the state does not allow it), and
// ErrUnavailable (a dependency or the audit log cannot be reached).
package ops

import (
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// Operator has the use cases. It is safe for concurrent use.
type Operator struct {
	Jobs  *jobstore.Store
	Queue *queue.Client
	Audit *audit.Log   // nil: every change is refused
	Agent export.Owner // in the audit log; zero: the process itself
	Now   func() time.Time
}

// As returns an operator whose changes are recorded with the agent.
func (o *Operator) As(agent export.Owner) *Operator {
	other := *o
	other.Agent = agent
	return &other
}

// change records the event and performs the step. A step that fails is recorded again: as refused when the state does not
// allow it, otherwise as failed.
func (o *Operator) change(event audit.Event, step func() error) error {
	if o.Audit == nil {
		return errors.New("there is no audit log to record the change in")
	}
	event.Agent, event.Outcome = o.Agent, audit.Success
	if err := o.Audit.Record(event); err != nil {
		return fmt.Errorf("record the change: %w", err)
	}
	err := step()
	if err == nil {
		return nil
	}
	event.Outcome, event.Reason = audit.Failed, "the step failed"
	for _, answer := range []error{export.ErrNotFound, export.ErrConflict, export.ErrNotLive} {
		if errors.Is(err, answer) {
			event.Outcome, event.Reason = audit.Refused, answer.Error()
		}
	}
	if recordErr := o.Audit.Record(event); recordErr != nil {
		return errors.Join(err, fmt.Errorf("record that it failed: %w", recordErr))
	}
	return err
}
