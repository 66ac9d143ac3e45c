package ops

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Warning Verdict = "warning" // it works, but needs attention
	Bad     Verdict = "bad"     // it does not work, or data is at risk
)

// Finding is the result of a check.
type Finding struct {
	Check   string  `json:"check"` // such as "redis: eviction"
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`           // what was found
	Advice  string  `json:"advice,omitempty"` // what to do about it; "" when it is good
}

// DoctorConfig is what Doctor checks besides the job store and the queue. What is nil or empty is not checked.
type DoctorConfig struct {
	Objects   *objects.Store // opened without keys
	Databases []Database
	Files     []File
}

// Database is a PostgreSQL database of the deployment.
type Database struct {
	Name   string // what it is for
	Config pgdb.Config
}

// File is a file of configuration.
type File struct {
	Name   string // what it is, such as "issuers"
	Check  func(ctx context.Context) error
	Advice string
}

// Limits of what counts as good.
const (
	skewMost      = 2 * time.Second // expiry and tokens go by the clocks of the machines
	latencyMost   = 50 * time.Millisecond
	memoryMost    = 80 // percent
	overdueMost   = 10 * time.Minute
	silentMost    = 2 * time.Minute // several times SLUICE_UNIT_SILENCE
	abandonedMost = 15 * time.Minute
	jobsLooked    = 20 // of the live jobs, the oldest
	checkTimeout  = 20 * time.Second
)

const unknown = "unknown"

type report struct{ findings []Finding }

func (r *report) add(check string, verdict Verdict, detail, advice string) {
	if verdict == Good {
		advice = ""
	}
	r.findings = append(r.findings, Finding{Check: check, Verdict: verdict, Detail: detail, Advice: advice})
}

// judge adds a finding that is good when it holds.
func (r *report) judge(check string, holds bool, otherwise Verdict, detail, advice string) {
	if holds {
		otherwise = Good
	}
	r.add(check, otherwise, detail, advice)
}

// try adds a finding that is good with the detail if there is no error, and bad with the error otherwise.
func (r *report) try(check string, err error, detail, advice string) {
	if err != nil {
		detail = err.Error()
	}
	r.judge(check, err == nil, Bad, detail, advice)
}

// failed adds a finding if a read of Redis failed.
func (r *report) failed(check string, err error) bool {
	if err != nil {
		r.add(check, Bad, err.Error(), "see the findings about Redis")
	}
	return err != nil
}

// Doctor checks every dependency and the state of the deployment, with advice for each finding. It writes only one object
// under the prefix doctor/, and deletes it.
func (o *Operator) Doctor(ctx context.Context, cfg DoctorConfig) []Finding {
	r := &report{}
	if o.examineRedis(ctx, r) {
		o.examineProcesses(ctx, r)
		o.examineJobs(ctx, r)
	}
	if cfg.Objects != nil {
		o.examineObjects(ctx, r, cfg.Objects)
	}
	for _, database := range cfg.Databases {
		o.examineDatabase(ctx, r, database)
	}
	for _, file := range cfg.Files {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		err := file.Check(ctx)
		cancel()
		r.try(file.Name, err, "it can be read", file.Advice)
	}
	return r.findings
}

func (o *Operator) examineRedis(ctx context.Context, r *report) (reachable bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	health, err := o.Jobs.Health(ctx)
	if err != nil {
		r.add("redis: reachable", Bad, err.Error(), "start Redis, or correct SLUICE_REDIS_URL, its password, or the network")
		return false
	}
	r.judge("redis: reachable", health.Latency <= latencyMost, Warning,
		fmt.Sprintf("it answers in %s", health.Latency.Round(10*time.Microsecond)),
		"Redis is slow or far away: see whether its machine is busy, or SLOWLOG GET")
	r.judge("redis: version", newEnough(health.Version), Bad, cmp.Or(health.Version, unknown), "use Redis 6.2 or later")
	if health.Eviction == "" {
		r.add("redis: eviction", Warning, "maxmemory-policy is unknown", "make sure that it is noeviction")
	} else {
		r.judge("redis: eviction", health.Eviction == "noeviction", Bad, "maxmemory-policy is "+health.Eviction,
			"jobs are lost when Redis is full: CONFIG SET maxmemory-policy noeviction, and in its configuration file")
	}
	switch {
	case health.AOF == "":
		r.add("redis: append-only file", Warning, unknown, "make sure that it runs with appendonly yes")
	case health.AOF != "1":
		r.add("redis: append-only file", Bad, "there is none",
			"jobs are lost when Redis restarts: CONFIG SET appendonly yes, and in its configuration file")
	default:
		r.judge("redis: append-only file", health.AOFStatus == "ok", Bad, "its last write: "+cmp.Or(health.AOFStatus, unknown),
			"Redis cannot write its file: look at its disk and its log")
	}
	r.judge("redis: role", health.Role == "" || health.Role == "master", Bad, cmp.Or(health.Role, unknown),
		"SLUICE_REDIS_URL leads to a replica, which takes no writes: name the master")
	if most := health.MemoryMost; most > 0 {
		percent := 100 * health.Memory / most
		r.judge("redis: memory", percent <= memoryMost, Warning, fmt.Sprintf("%d %% of %d MiB are used", percent, most>>20),
			"when it is full kick-offs are refused and units wait: raise maxmemory, or purge jobs")
	} else {
		r.add("redis: memory", Good, fmt.Sprintf("%d MiB are used, without a limit", health.Memory>>20), "")
	}
	o.compareClocks(r, "redis: clock", health.Clock, health.Latency, 0)
	if err := o.Queue.Ping(ctx); err != nil {
		r.add("queue: reachable", Bad, err.Error(), "start Redis, or correct SLUICE_REDIS_URL")
		return false
	}
	return true
}

// newEnough reports whether a version is 6.2 or later, or unknown.
func newEnough(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errors.Join(errA, errB) != nil || a > 6 || a == 6 && b >= 2
}

// compareClocks compares a clock, which was read within the latency to this resolution, with that of this machine.
func (o *Operator) compareClocks(r *report, check string, clock time.Time, latency, resolution time.Duration) {
	skew := o.Now().Sub(clock)
	r.judge(check, skew.Abs() <= skewMost+latency+resolution, Bad,
		fmt.Sprintf("%s from this machine's", skew.Abs().Round(time.Millisecond)),
		"jobs and tokens expire at the wrong time: have both machines follow one time server (chronyc tracking)")
}

func (o *Operator) examineProcesses(ctx context.Context, r *report) {
	processes, err := o.Queue.Processes(ctx)
	if r.failed("processes", err) {
		return
	}
	queues, err := o.Queue.Waiting(ctx)
	if r.failed("queues", err) {
		return
	}
	workers, slots, schedulers := 0, 0, 0
	for _, process := range processes {
		if process.Units && !process.Draining {
			workers++
			slots += process.Slots
		}
		if process.Maintenance && !process.Draining {
			schedulers++
		}
	}
	pending, oldest := 0, time.Duration(0)
	for _, queue := range queues {
		if queue.Units {
			pending += queue.Pending
			oldest = max(oldest, queue.Oldest)
		}
	}
	waiting := fmt.Sprintf("%d are alive with %d slots; %d units wait, the oldest for %s",
		workers, slots, pending, oldest.Round(time.Second))
	switch {
	case workers == 0 && pending > 0:
		r.add("workers", Bad, waiting, "start workers; if they run, look at their logs and at their SLUICE_REDIS_URL")
	case workers == 0:
		r.add("workers", Warning, waiting, "with scaling to zero that is as it should be; otherwise start workers")
	default:
		r.judge("workers", oldest < overdueMost, Warning, waiting, "start more workers, or see why units take so long: "+
			"sluice admin worker list")
	}
	last, err := o.Queue.LastRescue(ctx)
	switch {
	case r.failed("schedulers", err):
	case schedulers == 0:
		r.add("schedulers", Bad, "none is alive", "start one: without it lost units wait, and nothing is purged")
	case last.IsZero():
		r.add("schedulers", Bad, fmt.Sprintf("%d are alive; none has finished a rescue lately", schedulers),
			"look at their logs: their passes fail")
	default:
		r.add("schedulers", Good, fmt.Sprintf("%d are alive; the last rescue was %s ago", schedulers,
			o.Now().Sub(last).Round(time.Second)), "")
	}
}

func (o *Operator) examineJobs(ctx context.Context, r *report) {
	kickoffs, err := o.Kickoffs(ctx)
	if err != nil {
		r.add("kick-offs", Bad, err.Error(), "sluice admin kickoffs resume, or pause again")
	} else {
		detail := "open"
		if !kickoffs.Open {
			detail = "paused since " + kickoffs.Since.UTC().Format(time.RFC3339)
		}
		r.judge("kick-offs", kickoffs.Open, Warning, detail, "sluice admin kickoffs resume, when the reason is gone")
	}
	if due, err := o.Jobs.Due(ctx, o.Now(), 0, 1); !r.failed("purges", err) {
		overdue, detail := time.Duration(0), "none is overdue"
		if len(due) > 0 {
			overdue = o.Now().Sub(due[0].At)
			detail = fmt.Sprintf("the next one is %s overdue", overdue.Round(time.Second))
		}
		r.judge("purges", overdue < overdueMost, Bad, detail,
			"data is kept too long: look at the schedulers' logs and at the object store")
	}
	o.examineActive(ctx, r)
}

// examineActive checks the index of live jobs for entries without a job, and their units for missing heartbeats.
func (o *Operator) examineActive(ctx context.Context, r *report) {
	entries, err := o.Jobs.Active(ctx, 0, listMost)
	if r.failed("jobs at work", err) {
		return
	}
	abandoned, looked, live := 0, 0, 0
	var silent []string
	for _, entry := range entries {
		job, err := o.Jobs.Job(ctx, entry.ID)
		switch {
		case errors.Is(err, export.ErrNotFound):
			if o.Now().Sub(entry.At) > abandonedMost {
				abandoned++
			}
			continue
		case r.failed("jobs at work", err):
			return
		case !job.State.Live():
			continue
		}
		live++
		if looked++; looked > jobsLooked {
			continue
		}
		detail, err := o.Inspect(ctx, entry.ID)
		if err != nil {
			continue // it has ended in this moment
		}
		for _, unit := range detail.Units {
			if unit.State == UnitRunning && unit.Silent.Duration > silentMost {
				silent = append(silent, fmt.Sprintf("%s of %s", unit.ID, job.ID))
			}
		}
	}
	summary := fmt.Sprintf("%d; no unit is silent", live)
	if len(silent) > 0 {
		summary = fmt.Sprintf("%d; silent for minutes: %s", live, strings.Join(silent, ", "))
	}
	r.judge("jobs at work", len(silent) == 0, Bad, summary,
		"lost units are not rescued: look at the schedulers; sluice admin unit retry JOB UNIT starts one elsewhere")
	r.judge("entries without a job", abandoned == 0, Warning, strconv.Itoa(abandoned),
		"schedulers should have removed them: look at their logs")
}

func (o *Operator) examineObjects(ctx context.Context, r *report, store *objects.Store) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := store.Check(ctx); err != nil {
		r.add("object store: bucket", Bad, err.Error(),
			"start it, correct SLUICE_S3_ENDPOINT, the keys or the network; a service makes the bucket if its user may")
		return
	}
	r.add("object store: bucket", Good, "it is there", "")
	r.try("object store: permissions", probe(ctx, store), "an object can be written, read, listed and deleted",
		"the access key needs PutObject, GetObject, ListBucket and DeleteObject on the bucket, and those of multipart uploads")
	begun := o.Now()
	clock, err := store.Clock(ctx)
	if err != nil {
		r.add("object store: clock", Warning, err.Error(), "make sure that the clock of its machine is right")
		return
	}
	o.compareClocks(r, "object store: clock", clock, o.Now().Sub(begun), time.Second)
}

// probe does everything with an object that services do.
func probe(ctx context.Context, store *objects.Store) (err error) {
	prefix := "doctor/" + rand.Text()
	key := prefix + "/probe"
	content := []byte("written by sluice admin doctor; it may be deleted\n")
	defer func() {
		// Also after a step that failed: what it did may be there.
		_, undo := store.DeletePrefix(context.WithoutCancel(ctx), prefix+"/")
		if err == nil && undo != nil {
			err = fmt.Errorf("delete: %w", undo)
		}
	}()
	object := store.Create(ctx, key, "text/plain")
	if _, err := object.Write(content); err != nil {
		return errors.Join(fmt.Errorf("write: %w", err), object.Abort())
	}
	if _, err := object.Commit(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	body, err := store.Open(ctx, key, 0, -1)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	read, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !bytes.Equal(read, content) {
		return errors.New("read: it is not what was written")
	}
	listed := 0
	if err := store.List(ctx, prefix+"/", func(objects.Info) error { listed++; return nil }); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if listed != 1 {
		return fmt.Errorf("list: %d objects, want the one that was written", listed)
	}
	deleted, err := store.DeletePrefix(ctx, prefix+"/")
	if err == nil && deleted != 1 {
		err = fmt.Errorf("%d objects, want the one that was written", deleted)
	}
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

func (o *Operator) examineDatabase(ctx context.Context, r *report, database Database) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	name := "postgresql (" + database.Name + "): "
	facts, err := pgdb.Examine(ctx, database.Config)
	if err != nil {
		r.add(name+"reachable", Bad, err.Error(), "start it, or correct the URL, its password, sslmode, or the network")
		return
	}
	r.judge(name+"reachable", facts.Latency <= latencyMost, Warning,
		fmt.Sprintf("version %s; it answers in %s", facts.Version, facts.Latency.Round(10*time.Microsecond)),
		"it is slow or far away: see whether its machine is busy")
	r.judge(name+"encoding", facts.Encoding == "UTF8", Bad, facts.Encoding, "create a database with the encoding UTF8")
	r.try(name+"schema", pgdb.CheckSchema(ctx, database.Config), "it is as this program needs it",
		"sluice admin migrate, as the owner of the database")
	detail := "every table can be read"
	if len(facts.Hidden) > 0 {
		detail = "it may not read " + strings.Join(facts.Hidden, ", ")
	}
	r.judge(name+"permissions", len(facts.Hidden) == 0, Bad, detail, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO the user")
	o.compareClocks(r, name+"clock", facts.Clock, facts.Latency, 0)
}
