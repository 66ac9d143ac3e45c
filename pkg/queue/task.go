// Package queue carries work between the services on Asynq. A task names a job, a unit and a fence and nothing else:
// what is to be done stands in the job store, so a task may be lost (the scheduler enqueues it again), delivered
// twice or delivered late (its fence is stale by then) without harm.
//
// Outcomes are kept in the job store too. A handler returns an error only when it could not even record what
// happened; the task is then retried, and never archived in practice.
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

// The queues. Steering comes before bulk, and has slots of its own beside: what is short need not wait behind what is
// long, so that a small job runs in the middle of a population's. A unit may stand in either, as old and new processes
// decide differently.
const (
	steeringQueue = "steering" // plan, references, seal, and short units that write files
	bulkQueue     = "bulk"     // long units that write files
	upkeepQueue   = "upkeep"   // expire, purge, sweep: as long as the object store takes
	watchQueue    = "watch"    // rescue: Redis alone, and never behind anything slow
)

// The task types on the wire. A type is never renamed: old and new workers run side by side.
const (
	purgeType  = "sluice:purge"
	upkeepType = "sluice:upkeep"
	watchType  = "sluice:watch"
)

// unitTypes are the task types of the kinds of units: one task for each unit.
var unitTypes = map[export.Kind]string{
	export.KindPlan:              "sluice:plan",
	export.KindExport:            "sluice:export",
	export.KindResolveReferences: "sluice:references",
	export.KindExportReferenced:  "sluice:referenced",
	export.KindSeal:              "sluice:seal",
}

// Task is one unit to be worked on at one fence.
type Task struct {
	Kind  export.Kind
	Job   export.JobID
	Unit  export.UnitID
	Fence int64
	Short bool          // over soon (export.Unit.Short); only for the choice of the queue, it does not travel
	Delay time.Duration // not before this long from now
	Trace string        // W3C traceparent of who enqueues it, or ""; only to tell what led to what
}

// TaskOf is the task of a unit at a fence.
func TaskOf(job export.JobID, unit export.Unit, fence int64) Task {
	return Task{Kind: unit.Kind, Job: job, Unit: unit.ID, Fence: fence, Short: unit.Short()}
}

// id is unique to the attempt: a later attempt has a higher fence, so a leftover of an earlier one never blocks it.
func (t Task) id() string { return fmt.Sprintf("%s:%s:%d", t.Job, t.Unit, t.Fence) }

func (t Task) queue() string {
	if (t.Kind == export.KindExport || t.Kind == export.KindExportReferenced) && !t.Short {
		return bulkQueue
	}
	return steeringQueue
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

// decodeTask reads what lies in the queue. Ids become parts of keys and prefixes, so that what has not their form is an
// error, whoever wrote it. Errors repeat nothing of the payload.
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

// decodePurge reads which job is to be purged.
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
