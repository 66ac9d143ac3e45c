// Package ops implements the operator's actions on jobs, units, kick-offs, workers and queues, and a check of every
// dependency of a deployment. The command line and the operator's page use it.
//
// A change is recorded in the audit log first. A change that cannot be recorded is not made. A change to a job is one
// compare-and-set step in the job store. It can be repeated, and a scheduler completes it if it is interrupted.
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

// Operator performs an operator's actions. It is safe for concurrent use.
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

// change records the event and performs the step. A failed step is recorded again: as refused if the state does not allow
// it, otherwise as failed.
func (o *Operator) change(event audit.Event, step func() error) error {
	if o.Audit == nil {
		return errors.New("no audit log is configured to record the change")
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
		return errors.Join(err, fmt.Errorf("record the failure: %w", recordErr))
	}
	return err
}
