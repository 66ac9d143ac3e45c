package model

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// The queues' names on the wire.
var unitQueues = []string{"steering", "bulk"}

const purgeQueue = "upkeep"

// task is a task in one of Asynq's queues. A server of Asynq would take them in an order of its own, so the model takes
// them itself, with the commands of Asynq's scripts.
type task struct {
	queue, id, state string
	job              export.JobID
	unit             export.UnitID // "" for a purge
	fence            int64
}

func (k task) kind() export.Kind {
	switch {
	case k.unit == export.PlanUnit:
		return export.KindPlan
	case k.unit == export.ReferencesUnit:
		return export.KindResolveReferences
	case k.unit == export.SealUnit:
		return export.KindSeal
	case strings.HasPrefix(string(k.unit), followedType):
		return export.KindExportReferenced
	}
	return export.KindExport
}

func queueKey(queue, name string) string { return "asynq:{" + queue + "}:" + name }

var (
	queues     = append(slices.Clone(unitQueues), purgeQueue)
	taskStates = []string{"pending", "active", "scheduled", "retry"}
)

// taskReplies are the answers about each queue and state.
type taskReplies []*redis.StringSliceCmd

func askTasks(ctx context.Context, pipe redis.Pipeliner) (replies taskReplies) {
	for _, queue := range queues {
		for _, state := range taskStates {
			if state == "pending" || state == "active" {
				replies = append(replies, pipe.LRange(ctx, queueKey(queue, state), 0, -1))
			} else {
				replies = append(replies, pipe.ZRange(ctx, queueKey(queue, state), 0, -1))
			}
		}
	}
	return replies
}

// tasks returns the tasks of units and of purges, sorted by their ids.
func (replies taskReplies) tasks() (units, purges []task, err error) {
	for i, reply := range replies {
		queue, state := queues[i/len(taskStates)], taskStates[i%len(taskStates)]
		for _, id := range reply.Val() {
			parts := strings.Split(id, ":")
			found := task{queue: queue, id: id, state: state}
			if queue == purgeQueue { // purge:<job>, purge:<job>:<time>
				found.job = export.JobID(parts[1])
				purges = append(purges, found)
				continue
			}
			found.job, found.unit = export.JobID(parts[0]), export.UnitID(parts[1])
			if found.fence, err = strconv.ParseInt(parts[2], 10, 64); err != nil {
				return nil, nil, err
			}
			units = append(units, found)
		}
	}
	slices.SortFunc(units, func(a, b task) int { return strings.Compare(a.id, b.id) })
	slices.SortFunc(purges, func(a, b task) int { return strings.Compare(a.id, b.id) })
	return units, purges, nil
}

// take takes a waiting task, delayed or not, as a server of Asynq does.
func (w *world) take(k task) {
	w.moveTask(k, func(pipe redis.Pipeliner) {
		pipe.LPush(w.ctx, queueKey(k.queue, "active"), k.id)
		pipe.ZAdd(w.ctx, queueKey(k.queue, "lease"), redis.Z{Member: k.id})
		pipe.HSet(w.ctx, queueKey(k.queue, "t:"+k.id), "state", "active")
	})
}

// requeue lets Asynq retry the task, after an error of its handler or when it learns that the process has died.
func (w *world) requeue(k task) {
	w.moveTask(k, func(pipe redis.Pipeliner) {
		pipe.ZAdd(w.ctx, queueKey(k.queue, "retry"), redis.Z{Member: k.id})
		pipe.HSet(w.ctx, queueKey(k.queue, "t:"+k.id), "state", "retry")
	})
}

// done deletes the task.
func (w *world) done(k task) {
	w.moveTask(k, func(pipe redis.Pipeliner) { pipe.Del(w.ctx, queueKey(k.queue, "t:"+k.id)) })
}

func (w *world) moveTask(k task, to func(redis.Pipeliner)) {
	_, err := w.raw.TxPipelined(w.ctx, func(pipe redis.Pipeliner) error {
		for _, list := range []string{"pending", "active"} {
			pipe.LRem(w.ctx, queueKey(k.queue, list), 0, k.id)
		}
		for _, set := range []string{"scheduled", "retry", "lease"} {
			pipe.ZRem(w.ctx, queueKey(k.queue, set), k.id)
		}
		to(pipe)
		return nil
	})
	must(w.t, err)
}
