package model

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// view is what Redis holds, read from the keys and not through the job store.
type view struct {
	jobs        map[export.JobID]*record
	active, due map[string]float64
	committed   map[string]string
	owners      map[string]*owned // by owner key

	tasks, purges []task // by their ids
}

// owned is the indexes of an owner.
type owned struct {
	running, finished map[string]float64
	stored            map[string]string
}

// record is one job.
type record struct {
	fields                  map[string]string // empty: it is gone
	units                   map[string]export.Unit
	fences                  map[string]int64
	attempts, claims        map[string]string
	raw                     map[string]string // results as they are stored
	results                 map[string]export.Result
	files                   map[string]string
	staged, waiting, issued map[string]float64
	keys, unlimited         int // keys that exist, and, of an ended job, keys without a TTL
}

func (r *record) state() string {
	if r == nil || len(r.fields) == 0 {
		return gone
	}
	return r.fields["state"]
}

func (r *record) number(field string) int64 {
	n, _ := strconv.ParseInt(r.fields[field], 10, 64)
	return n
}

// place returns the place of the unit and how many it has. Only a stage that was taken back has none.
func (r *record) place(unit string) (place string, places int) {
	place = absent
	if r == nil {
		return place, 0
	}
	if _, known := r.units[unit]; known {
		place = back
	}
	for _, in := range []struct {
		name string
		set  map[string]float64
	}{{staged, r.staged}, {waiting, r.waiting}, {issued, r.issued}} {
		if _, is := in.set[unit]; is {
			place = in.name
			places++
		}
	}
	if _, is := r.raw[unit]; is {
		place = closed
		places++
	}
	if place == issued && r.claims[unit] == strconv.FormatInt(r.fences[unit], 10) {
		place = claimed
	}
	return place, places
}

var hashes = []string{"job", "units", "fences", "attempts", "claims", "results", "files"}
var sets = []string{"staged", "waiting", "issued"}

// replies are the answers about one job.
type replies struct {
	keys   *redis.IntCmd
	hashes []*redis.MapStringStringCmd
	sets   []*redis.ZSliceCmd
	ttls   []*redis.DurationCmd
}

// read reads the jobs and all indexes in one round trip. Of a job that is gone it only counts the keys.
func read(ctx context.Context, client *redis.Client, jobs []*job) (*view, error) {
	pipe := client.Pipeline()
	answers := make([]replies, len(jobs))
	for i, job := range jobs {
		a := &answers[i]
		var keys []string
		for _, name := range append(append([]string{"polls"}, hashes...), sets...) {
			keys = append(keys, keyOf(job.id, name))
		}
		a.keys = pipe.Exists(ctx, keys...)
		if job.removed {
			continue
		}
		for _, name := range hashes {
			a.hashes = append(a.hashes, pipe.HGetAll(ctx, keyOf(job.id, name)))
		}
		for _, name := range sets {
			a.sets = append(a.sets, pipe.ZRangeWithScores(ctx, keyOf(job.id, name), 0, -1))
		}
		if job.ended {
			for _, key := range keys {
				a.ttls = append(a.ttls, pipe.PTTL(ctx, key))
			}
		}
	}
	active, due := pipe.ZRangeWithScores(ctx, "sluice:jobs:active", 0, -1), pipe.ZRangeWithScores(ctx, "sluice:jobs:due", 0, -1)
	committed := pipe.HGetAll(ctx, "sluice:committed")
	indexes := map[string]*ownerReplies{}
	for _, owner := range theOwners {
		indexes[owner.Key()] = &ownerReplies{
			pipe.ZRangeWithScores(ctx, "sluice:running:"+owner.Key(), 0, -1),
			pipe.ZRangeWithScores(ctx, "sluice:finished:"+owner.Key(), 0, -1),
			pipe.HGetAll(ctx, "sluice:stored:"+owner.Key()),
		}
	}
	tasks := askTasks(ctx, pipe)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	v := &view{
		jobs: map[export.JobID]*record{}, active: scores(active), due: scores(due), committed: committed.Val(),
		owners: map[string]*owned{},
	}
	for key, o := range indexes {
		v.owners[key] = &owned{scores(o.running), scores(o.finished), o.stored.Val()}
	}
	for i, job := range jobs {
		found, err := answers[i].record()
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", job.id, err)
		}
		v.jobs[job.id] = found
	}
	var err error
	v.tasks, v.purges, err = tasks.tasks()
	return v, err
}

type ownerReplies struct {
	running, finished *redis.ZSliceCmd
	stored            *redis.MapStringStringCmd
}

func (a replies) record() (*record, error) {
	r := &record{keys: int(a.keys.Val()), units: map[string]export.Unit{}, fences: map[string]int64{}}
	if len(a.hashes) == 0 {
		return r, nil
	}
	r.fields, r.attempts, r.claims, r.raw, r.files = a.hashes[0].Val(), a.hashes[3].Val(), a.hashes[4].Val(), a.hashes[5].Val(),
		a.hashes[6].Val()
	r.staged, r.waiting, r.issued = scores(a.sets[0]), scores(a.sets[1]), scores(a.sets[2])
	r.results = map[string]export.Result{}
	for _, ttl := range a.ttls {
		if ttl.Val() == -1 { // there is a key, without a TTL
			r.unlimited++
		}
	}
	return r, decode(r, a.hashes[1].Val(), a.hashes[2].Val())
}

func decode(r *record, units, fences map[string]string) error {
	for name, text := range units {
		var unit export.Unit
		if err := json.Unmarshal([]byte(text), &unit); err != nil {
			return fmt.Errorf("unit %s: %w", name, err)
		}
		r.units[name] = unit
	}
	for name, text := range fences {
		fence, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("fence of %s: %w", name, err)
		}
		r.fences[name] = fence
	}
	for name, text := range r.raw {
		var result export.Result
		if err := json.Unmarshal([]byte(text), &result); err != nil {
			return fmt.Errorf("result of %s: %w", name, err)
		}
		r.results[name] = result
	}
	return nil
}

func scores(reply *redis.ZSliceCmd) map[string]float64 {
	found := map[string]float64{}
	for _, z := range reply.Val() {
		member, _ := z.Member.(string)
		found[member] = z.Score
	}
	return found
}

func keyOf(id export.JobID, name string) string { return "sluice:{" + string(id) + "}:" + name }
