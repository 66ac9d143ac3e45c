// Package ops is what an operator can see and do: jobs and their units, the intake of new jobs, workers and queues,
// and whether everything that a deployment needs is in order. The command line and the operator's page are two faces of
// it; nothing here knows how it is presented.
//
// It promises that every change is on record in the audit log before it is made, and is not made when it cannot be
// recorded; that a change which was decided by the state of a job is one compare-and-set step in the job store; and that
// every step may be repeated, or die halfway, without harm: what it leaves undone a scheduler does.
//
// It shows no patient's data and no subject: owners go by export.Owner.Key, errors by their class.
//
// Errors: export.ErrNotFound, ErrNotLive (the job has ended) and ErrConflict (not in this state; the text says why) are
// answers; export.ErrUnavailable means that something cannot be reached, the audit log among them.
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

// Parts are what an Operator works with.
type Parts struct {
	Jobs  *jobstore.Store
	Queue *queue.Client
	Audit *audit.Log   // nil: for looking only; every change is refused
	Agent export.Owner // who changes something, for the audit log; the zero Owner: the process itself
	Now   func() time.Time
}

// Operator has the use cases. Its methods may be called from any goroutine.
type Operator struct{ Parts }

// New returns an Operator.
func New(parts Parts) (*Operator, error) {
	if parts.Jobs == nil || parts.Queue == nil || parts.Now == nil {
		return nil, errors.New("operator: a part is missing")
	}
	return &Operator{parts}, nil
}

// As returns the operator under whose name changes are recorded.
func (o *Operator) As(agent export.Owner) *Operator {
	other := *o
	other.Agent = agent
	return &other
}

// change records what is about to be done and does it. A step that fails is recorded once more, as refused when the state
// of things forbids it, and otherwise as failed.
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
