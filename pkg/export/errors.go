package export

import (
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on.
var (
	// ErrNotFound: there is no such job, unit or file.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the job is in a state from which the step is not allowed, or the name is taken.
	ErrConflict = errors.New("conflict")
	// ErrFenced: the caller's fence is stale, because another attempt owns the unit or it is closed. The output of the
	// caller is garbage. This is not a failure.
	ErrFenced = errors.New("fenced off")
	// ErrNotLive: the job was cancelled, failed, completed or purged; stop working on it.
	ErrNotLive = errors.New("job is not live")
	// ErrUnavailable: a dependency (Redis, object store, source) cannot be reached; try again later.
	ErrUnavailable = errors.New("unavailable")
)

// PermanentError is a failure of a unit that a retry cannot change.
type PermanentError struct{ Reason string }

func (e PermanentError) Error() string { return "permanent: " + e.Reason }

// Permanent returns an outcome that closes the unit as failed. The job's owner reads the reason; it has no patient id.
func Permanent(format string, args ...any) error {
	return PermanentError{Reason: fmt.Sprintf(format, args...)}
}

// Backoff returns how long to wait before the attempt'th retry (from 1): doubling from one second to one minute.
func Backoff(attempt int) time.Duration {
	const most = time.Minute
	if attempt > 6 {
		return most
	}
	return min(time.Second<<max(attempt-1, 0), most)
}

// Cause is the class of a unit's last failure, for operators. The error text is not shown to them, because it may
// contain data.
type Cause string

// The causes.
const (
	CauseUnavailable Cause = "unavailable" // a dependency could not be reached
	CauseDraining    Cause = "draining"    // its worker stopped and handed it back
	CauseError       Cause = "error"       // its data could not be read or stored
	CauseLost        Cause = "lost"        // its worker stopped sending heartbeats
	CauseOperator    Cause = "operator"    // an operator took it from its worker
)
