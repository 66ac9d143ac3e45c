// Package queue passes tasks between the services with Asynq. A task only names a job, a unit and a fence; the job store
// has the rest. So a task may be lost (the scheduler enqueues it again), delivered twice or delivered late (its fence is
// stale by then) without harm.
//
// Outcomes are kept in the job store too. A handler returns an error only when it could not record the outcome; Asynq
// then retries the task, and in practice never archives it.
package queue

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluice-fhir/sluice/pkg/export"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

// The queues. Short units do not wait behind long ones, so that a small job passes a large one: the express queue is served
// first and has its own slots. Workers accept any unit from either queue, because releases choose the queue differently.
// The names on the wire are those of the first release and never change.
const (
	expressQueue     = "steering" // plan, references, seal, and short units that write files
	bulkQueue        = "bulk"     // long units that write files
	maintenanceQueue = "upkeep"   // expire, purge, sweep: may wait for the object store
	rescueQueue      = "watch"    // rescue: only needs Redis
)

// The task types on the wire. A type is never renamed: old and new workers run side by side.
const (
	purgeType     = "sluice:purge"
	recurringType = "sluice:upkeep"
	rescueType    = "sluice:watch"
)

// unitTypes are the task types of the kinds of units: one task for each unit.
var unitTypes = map[export.Kind]string{
	export.KindPlan:              "sluice:plan",
	export.KindExport:            "sluice:export",
	export.KindResolveReferences: "sluice:references",
	export.KindExportReferenced:  "sluice:referenced",
	export.KindExportAssociated:  "sluice:associated",
	export.KindSeal:              "sluice:seal",
}

// Task is one unit at one fence.
type Task struct {
	Kind  export.Kind
	Job   export.JobID
	Unit  export.UnitID
	Fence int64
	Short bool          // export.Unit.Short: decides the queue, and is not sent
	Delay time.Duration // until the task may be taken
	Trace string        // W3C traceparent of the caller, or ""
}

// TaskOf is the task of a unit at the lease's fence.
func TaskOf(lease export.Lease) Task {
	return Task{
		Kind: lease.Unit.Kind, Job: lease.Job, Unit: lease.Unit.ID, Fence: lease.Fence, Short: lease.Unit.Short(),
	}
}

// id is unique to the attempt, so that the task of an earlier attempt never blocks a later one.
func (t Task) id() string { return fmt.Sprintf("%s:%s:%d", t.Job, t.Unit, t.Fence) }

func (t Task) queue() string {
	if t.Kind.Writes() && !t.Short {
		return bulkQueue
	}
	return expressQueue
}

func (t Task) payload() ([]byte, error) {
	return proto.Marshal(&sluicev1.UnitTask{
		JobId:  string(t.Job),
		UnitId: string(t.Unit),
		Fence:  t.Fence,
		Kind:   string(t.Kind),

		Traceparent: t.Trace,
	})
}

// decodeTask reads a payload. Ids become parts of keys and prefixes, so any other form is an error. Errors never quote the
// payload.
func decodeTask(payload []byte) (Task, error) {
	var message sluicev1.UnitTask
	if err := proto.Unmarshal(payload, &message); err != nil {
		return Task{}, fmt.Errorf("decode unit task: %w", err)
	}
	job, err := export.ParseJobID(message.GetJobId())
	if err != nil {
		return Task{}, fmt.Errorf("decode unit task: %w", err)
	}
	unit, fence := message.GetUnitId(), message.GetFence()
	if unit == "" || strings.ContainsAny(unit, "/.") || fence < 1 {
		return Task{}, errors.New("decode unit task: it names no unit or no fence")
	}
	return Task{
		Kind: export.Kind(message.GetKind()), Job: job, Unit: export.UnitID(unit), Fence: fence,
		Trace: message.GetTraceparent(),
	}, nil
}

// decodePurge reads the job of a purge.
func decodePurge(payload []byte) (export.JobID, error) {
	var message sluicev1.PurgeTask
	if err := proto.Unmarshal(payload, &message); err != nil {
		return "", fmt.Errorf("decode purge task: %w", err)
	}
	job, err := export.ParseJobID(message.GetJobId())
	if err != nil {
		return "", fmt.Errorf("decode purge task: %w", err)
	}
	return job, nil
}
