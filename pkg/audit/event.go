package audit

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Action is what was done, or asked for.
type Action string

// The actions.
const (
	KickOff Action = "kick-off" // an export was begun
	Status  Action = "status"   // its state or its manifest was read
	File    Action = "file"     // a file of it was read
	Cancel  Action = "cancel"   // its owner ended it
	Expire  Action = "expire"   // its time was over
	Purge   Action = "purge"    // its files and its record were deleted
	Denied  Action = "denied"   // a request was turned away before it came to one of these
	Token   Action = "token"    // an access token was asked for
	Admin   Action = "admin"    // an operator changed something
	Start   Action = "start"    // the log was opened; Open records it
	Stop    Action = "stop"     // the log was closed; Close records it
	Repair  Action = "repair"   // something happened to the log itself; it is recorded before the next event
)

// Outcome is how it ended.
type Outcome string

// The outcomes.
const (
	Success Outcome = "success"
	Refused Outcome = "refused" // because of what was asked or who asked
	Failed  Outcome = "failed"  // because of us
)

// Range is a part of a file, in bytes.
type Range struct {
	Start  int64
	Length int64 // 0: the whole file
}

// Event is what Record writes down. Only Action and Outcome are required. No field may hold a patient's id, a token, a
// query string or anything else that was taken from a request unchecked.
type Event struct {
	Action  Action
	Outcome Outcome
	// Agent is who did it, as the token says; the zero Owner is nobody who is known. What Expire, Purge, Admin, Start,
	// Stop and Repair do without an agent is done by the process.
	Agent   export.Owner
	Address netip.Addr // where the request came from; the zero Addr when that is not known

	Job    export.JobID // "" when it is about none
	Target string       // what it is about besides a job: the group of a kick-off, the client of a token, a grant
	Types  []string     // the resource types of a kick-off, after they were checked
	File   string       // the name of a file of the job that exists
	Range  Range        // the part of the file
	Bytes  int64        // bytes handed out

	HTTPStatus int    // 0: there was no request
	RequestID  string // made by us
	Reason     string // why it was refused or failed, in words of ours
}

// check refuses events that the caller has put together wrongly, so that nothing unchecked gets into the log.
func (e Event) check() error {
	if _, known := kinds[e.Action]; !known {
		return fmt.Errorf("event: %q is no action", e.Action)
	}
	if _, known := outcomes[e.Outcome]; !known {
		return fmt.Errorf("event: %q is no outcome", e.Outcome)
	}
	if e.Job != "" {
		if _, err := export.ParseJobID(string(e.Job)); err != nil {
			return errors.New("event: the job id does not have the form of one") // and may be anything
		}
	}
	if e.Range.Start < 0 || e.Range.Length < 0 || e.Bytes < 0 {
		return errors.New("event: a number of bytes is negative")
	}
	return nil
}
