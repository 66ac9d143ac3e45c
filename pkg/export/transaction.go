package export

import "time"

// TransactionTime is when the job finished, or for IG clients the instant of the snapshot (spec 9), in whole seconds. A
// fraction is rounded down: everything up to that instant is in the export, so a client that continues from it loses
// nothing.
func (j Job) TransactionTime() time.Time {
	at := j.Finished
	if j.Request.Dialect == IG {
		at = j.Snapshot
	}
	return at.UTC().Truncate(time.Second)
}
