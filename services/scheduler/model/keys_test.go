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
	fields                     map[string]string // empty: it is gone
	units                      map[string]export.Unit
	fences                     map[string]int64
	attempts, claims           map[string]string
	raw                        map[string]string // results as they are stored
	results                    map[string]export.Result
	files                      map[string]string
	staged, waiting, issued    map[string]float64
	keys, unlimited, forgotten int // keys that exist, that exist without a TTL; 1: the id is refused
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

// read reads the jobs and all indexes in one round trip.
func read(ctx context.Context, client *redis.Client, ids []export.JobID, owners []string) (*view, error) {
	type replies struct {
		hashes    []*redis.MapStringStringCmd
		sets      []*redis.ZSliceCmd
		ttls      []*redis.DurationCmd
		forgotten *redis.IntCmd
	}
	answers := make([]replies, len(ids))
	pipe := client.Pipeline()
	for i, id := range ids {
		a := &answers[i]
		for _, name := range hashes {
			a.hashes = append(a.hashes, pipe.HGetAll(ctx, keyOf(id, name)))
			a.ttls = append(a.ttls, pipe.PTTL(ctx, keyOf(id, name)))
		}
		for _, name := range sets {
			a.sets = append(a.sets, pipe.ZRangeWithScores(ctx, keyOf(id, name), 0, -1))
			a.ttls = append(a.ttls, pipe.PTTL(ctx, keyOf(id, name)))
		}
		a.forgotten = pipe.Exists(ctx, keyOf(id, "removed"))
	}
	active, due := pipe.ZRangeWithScores(ctx, "sluice:jobs:active", 0, -1), pipe.ZRangeWithScores(ctx, "sluice:jobs:due", 0, -1)
	committed := pipe.HGetAll(ctx, "sluice:committed")
	runs, finished, stored := make([]*redis.ZSliceCmd, len(owners)), make([]*redis.ZSliceCmd, len(owners)),
		make([]*redis.MapStringStringCmd, len(owners))
	for i, owner := range owners {
		runs[i] = pipe.ZRangeWithScores(ctx, "sluice:running:"+owner, 0, -1)
		finished[i] = pipe.ZRangeWithScores(ctx, "sluice:finished:"+owner, 0, -1)
		stored[i] = pipe.HGetAll(ctx, "sluice:stored:"+owner)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	v := &view{
		jobs: map[export.JobID]*record{}, active: scores(active), due: scores(due), committed: committed.Val(),
		owners: map[string]*owned{},
	}
	var err error
	if v.tasks, v.purges, err = readTasks(ctx, client); err != nil {
		return nil, err
	}
	for i, owner := range owners {
		v.owners[owner] = &owned{scores(runs[i]), scores(finished[i]), stored[i].Val()}
	}
	for i, id := range ids {
		a := answers[i]
		r := &record{
			fields: a.hashes[0].Val(), units: map[string]export.Unit{}, fences: map[string]int64{}, attempts: a.hashes[3].Val(),
			claims: a.hashes[4].Val(), raw: a.hashes[5].Val(), results: map[string]export.Result{}, files: a.hashes[6].Val(),
			staged: scores(a.sets[0]), waiting: scores(a.sets[1]), issued: scores(a.sets[2]), forgotten: int(a.forgotten.Val()),
		}
		for _, ttl := range a.ttls {
			switch ttl.Val() {
			case -2: // there is no such key
			case -1:
				r.keys++
				r.unlimited++
			default:
				r.keys++
			}
		}
		if err := decode(r, a.hashes[1].Val(), a.hashes[2].Val()); err != nil {
			return nil, fmt.Errorf("job %s: %w", id, err)
		}
		v.jobs[id] = r
	}
	return v, nil
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
