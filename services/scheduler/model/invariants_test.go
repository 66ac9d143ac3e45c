package model

import (
	"maps"
	"slices"
	"strconv"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// observe reads the keys after a step, or before a call of one, and compares them with the tables and the invariants.
func (w *world) observe(by step) {
	after, err := read(w.ctx, w.raw, w.jobs)
	must(w.t, err)
	before := w.seen
	w.seen = after
	for _, job := range w.jobs {
		was, is := before.jobs[job.id], after.jobs[job.id]
		if from, to := was.state(), is.state(); from != to && !slices.Contains(jobMoves[move{from, to}], by) {
			w.t.Fatalf("moves of jobs: %s: %s -> %s by %q", job.id[:1], from, to, by)
		}
		job.removed = job.removed || was.state() != gone && is.state() == gone
		job.ended = is.state() != gone && !isLive(is.state())
		if is.state() == gone {
			w.checkGone(job, is)
			continue
		}
		w.follow(by, job.id, was, is)
		w.checkUnits(job, is)
		w.checkResults(job, is)
		w.checkProgress(job, was, is)
		w.checkEnd(job, was, is)
	}
	w.checkCommitted()
	w.checkIndexes()
}

func (w *world) checkGone(job *job, is *record) {
	if is.keys > 0 {
		w.t.Fatalf("gone: %s: %d keys are left", job.id[:1], is.keys)
	}
	for unit := range w.ledger.holders {
		if export.JobID(unit[:len(job.id)]) == job.id {
			delete(w.ledger.holders, unit)
		}
	}
}

// order are the stages of a job.
var order = []export.Kind{
	export.KindPlan, export.KindExport, export.KindResolveReferences, export.KindExportReferenced, export.KindSeal,
}

// checkUnits: each unit has one place, a live job has an open one, all open ones are of one stage, and all units are cut by
// the attempt that was committed.
func (w *world) checkUnits(job *job, is *record) {
	for unit, spec := range is.units {
		place, places := is.place(unit)
		if places > 1 {
			w.t.Fatalf("places: %s %s has %d places", job.id[:1], unit, places)
		}
		if place == back && unit != string(export.SealUnit) && unit != string(export.ReferencesUnit) {
			w.t.Fatalf("places: %s %s has none", job.id[:1], unit)
		}
		if !spec.Kind.Writes() || place == staged {
			continue
		}
		cutter := string(export.PlanUnit)
		if spec.Kind == export.KindExportReferenced {
			cutter = string(export.ReferencesUnit)
		}
		if result, done := is.results[cutter]; !done || result.Failure != "" ||
			strconv.FormatInt(is.fences[cutter], 10) != spec.Digest {
			w.t.Fatalf("cuts: %s %s was cut at fence %s; %s was closed at %d: %+v", job.id[:1], unit, spec.Digest, cutter,
				is.fences[cutter], result)
		}
	}
	stages := map[int][]string{}
	for _, set := range []map[string]float64{is.waiting, is.issued} {
		for unit := range set {
			stage := slices.Index(order, is.units[unit].Kind)
			stages[stage] = append(stages[stage], unit)
		}
	}
	if len(stages) > 1 {
		w.t.Fatalf("stages: %s has open units of several: %v", job.id[:1], stages)
	}
	for _, set := range []map[string]float64{is.staged, is.waiting, is.issued} {
		for unit := range set {
			if _, known := is.units[unit]; !known {
				w.t.Fatalf("places: %s %s is no unit", job.id[:1], unit)
			}
		}
	}
	if isLive(is.state()) && len(is.waiting)+len(is.issued) == 0 {
		w.t.Fatalf("progress: %s is %s and has no open unit", job.id[:1], is.state())
	}
	if len(is.issued) > outstanding+1 { // a retried unit may be one more
		w.t.Fatalf("places: %s has %d issued units", job.id[:1], len(is.issued))
	}
}

// checkResults: the files are those of the results, each of the fence that closed its unit.
func (w *world) checkResults(job *job, is *record) {
	files := map[string]string{}
	for unit, result := range is.results {
		for _, file := range result.Files {
			files[file.Name] = unit
			origin, ok := export.ParseKey(file.Key)
			if !ok || origin.Job != job.id || string(origin.Unit) != unit || origin.Fence != is.fences[unit] {
				w.t.Fatalf("results: %s %s, closed at fence %d, has %s", job.id[:1], unit, is.fences[unit], file.Name)
			}
		}
		if failures, _ := strconv.Atoi(is.attempts[unit]); failures < 0 {
			w.t.Fatalf("attempts: %s %s has failed %d times", job.id[:1], unit, failures)
		}
	}
	if !maps.Equal(files, is.files) {
		w.t.Fatalf("results: %s has the files %v, want %v", job.id[:1], is.files, files)
	}
}

// sums is what the results of a job add up to.
type sums struct{ resources, bytes, stored int64 }

func (s *sums) add(o sums) {
	s.resources += o.resources
	s.bytes += o.bytes
	s.stored += o.stored
}

func (w *world) checkProgress(job *job, was, is *record) {
	var made sums
	var total, done int64
	for unit, spec := range is.units {
		for _, file := range is.results[unit].Files {
			made.add(sums{file.Count, file.Bytes, file.Stored})
		}
		place, _ := is.place(unit)
		if !spec.Kind.Writes() || place == staged {
			continue
		}
		total += spec.Bytes + 1
		if place == closed {
			done += spec.Bytes + 1
		}
	}
	if told := (sums{is.number("resources"), is.number("bytes"), is.number("stored")}); told != made {
		w.t.Fatalf("totals: %s has %+v, its results %+v", job.id[:1], told, made)
	}
	w.ledger.sums[job.id] = made
	if is.number("weight_total") != total || is.number("weight_done") != done {
		w.t.Fatalf("weights: %s has done %d of %d, its units %d of %d", job.id[:1], is.number("weight_done"),
			is.number("weight_total"), done, total)
	}
	percent := is.number("percent")
	sealed := is.fields["manifest"] != ""
	if was.state() != gone && percent < was.number("percent") || (percent == 100) != sealed {
		w.t.Fatalf("percent: %s: %d after %d, sealed: %v", job.id[:1], percent, was.number("percent"), sealed)
	}
}

// checkEnd: one seal, whose manifest has every file; and an ended job does not stay for ever.
func (w *world) checkEnd(job *job, was, is *record) {
	manifest := is.fields["manifest"]
	_, sealed := is.results[string(export.SealUnit)]
	if is.state() == completed && !sealed || sealed != (manifest != "") {
		w.t.Fatalf("seal: %s is %s, its seal is closed: %v, its manifest: %q", job.id[:1], is.state(), sealed, manifest)
	}
	if sealed {
		if manifest != export.ManifestKey(job.id, is.fences[string(export.SealUnit)]) ||
			was.state() != gone && was.fields["manifest"] != "" && was.fields["manifest"] != manifest {
			w.t.Fatalf("seal: %s has the manifest %s after %q", job.id[:1], manifest, was.fields["manifest"])
		}
		names := slices.Sorted(slices.Values(w.ledger.manifests[manifest]))
		if want := slices.Sorted(maps.Keys(is.files)); !slices.Equal(names, want) {
			w.t.Fatalf("seal: the manifest of %s has %v, its results %v", job.id[:1], names, want)
		}
	}
	if !isLive(is.state()) && is.unlimited > 0 {
		w.t.Fatalf("ttl: %s is %s, and %d of its keys have no TTL", job.id[:1], is.state(), is.unlimited)
	}
}

func (w *world) checkCommitted() {
	var all sums
	for _, made := range w.ledger.sums {
		all.add(made)
	}
	number := func(field string) int64 { n, _ := strconv.ParseInt(w.seen.committed[field], 10, 64); return n }
	if told := (sums{number("resources"), number("bytes"), number("stored")}); told != all {
		w.t.Fatalf("totals: all jobs have committed %+v, told are %+v", all, told)
	}
}

// checkIndexes: each index has the jobs that belong in it, and no other.
func (w *world) checkIndexes() {
	active, due := map[string]float64{}, map[string]float64{}
	owners := map[string]*owned{}
	for _, owner := range theOwners {
		owners[owner.Key()] = &owned{map[string]float64{}, map[string]float64{}, map[string]string{}}
	}
	now := float64(w.clock.Now().UnixMilli())
	for _, job := range w.jobs {
		is := w.seen.jobs[job.id]
		id, mine, held := string(job.id), owners[job.owner.Key()], w.seen.owners[job.owner.Key()]
		switch state := is.state(); {
		case state == gone:
		case isLive(state):
			active[id] = w.seen.active[id]
			entry := id + " " + is.fields["fingerprint"]
			mine.running[entry] = held.running[entry] // below zero once it is confirmed
			if confirmed := is.fields["unconfirmed"] == ""; active[id] == 0 || (mine.running[entry] < 0) != confirmed {
				w.t.Fatalf("indexes: %s is active since %v, confirmed: %v, running since %v", id[:1], active[id], confirmed,
					mine.running[entry])
			}
		case state == completed || state == failed:
			due[id] = float64(is.number("expires"))
			if _, there := held.finished[id]; there || due[id] > now { // one that has expired may have been dropped
				mine.finished[id] = due[id]
				mine.stored[id] = "0"
				if state == completed {
					mine.stored[id] = strconv.FormatInt(is.number("stored"), 10)
				}
			}
		default:
			if due[id] = w.seen.due[id]; due[id] > now || due[id] == 0 {
				w.t.Fatalf("indexes: %s is %s, and due at %v", id[:1], state, due[id])
			}
		}
	}
	if !maps.Equal(active, w.seen.active) || !maps.Equal(due, w.seen.due) {
		w.t.Fatalf("indexes: active %v, want %v; due %v, want %v", w.seen.active, active, w.seen.due, due)
	}
	for key, want := range owners {
		var total int64
		for _, bytes := range want.stored {
			n, _ := strconv.ParseInt(bytes, 10, 64)
			total += n
		}
		is := w.seen.owners[key]
		if len(is.stored) > 0 {
			want.stored["total"] = strconv.FormatInt(total, 10)
		}
		if !maps.Equal(is.running, want.running) || !maps.Equal(is.finished, want.finished) || !maps.Equal(is.stored, want.stored) {
			w.t.Fatalf("indexes: an owner has %+v, want %+v", is, want)
		}
	}
}

// checkBucket: every object of a finished job is in its results, and every one of these exists.
func (w *world) checkBucket() {
	needed, there := map[string]bool{}, map[string]bool{}
	for _, job := range w.jobs {
		is := w.seen.jobs[job.id]
		if state := is.state(); state != completed && !isLive(state) {
			continue // what is left of others is purged soon
		}
		if is.fields["manifest"] != "" {
			needed[is.fields["manifest"]] = true
		}
		for _, result := range is.results {
			for _, file := range result.Files {
				needed[file.Key] = true
			}
		}
	}
	for _, key := range w.bucket("") {
		there[key] = true
		id, _ := export.JobOf(key)
		switch state := w.seen.jobs[id].state(); state {
		case completed:
			if !needed[key] {
				w.t.Fatalf("bucket: nothing refers to %s after a sweep", key)
			}
		case gone, failed:
			w.t.Fatalf("bucket: the job is %s, and has %s after a sweep", state, key)
		}
	}
	for key := range needed {
		if !there[key] {
			w.t.Fatalf("bucket: %s was deleted, and its job is %s", key, w.seen.jobs[export.JobID(key[5:31])].state())
		}
	}
}
