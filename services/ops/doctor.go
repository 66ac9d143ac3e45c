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
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

// Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Warning Verdict = "warning" // it works, but needs attention
	Bad     Verdict = "bad"     // it does not work, or data is at risk
)

// Finding is a verdict and its details.
type Finding struct {
	Check   string  `json:"check"` // such as "redis: eviction"
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`           // what was found
	Advice  string  `json:"advice,omitempty"` // how to fix it; "" for a good verdict
}

// Unknown reports whether the check could not be made, such as a setting that a hosted Redis hides.
func (f Finding) Unknown() bool { return f.Verdict == Warning && strings.HasSuffix(f.Detail, unknown) }

// DoctorConfig lists the dependencies that Doctor checks besides the job store and the queue. Nil or empty ones are
// skipped.
type DoctorConfig struct {
	Objects   *objects.Store // opened without keys
	Databases []Database
	Files     []File
}

// Database is a PostgreSQL database of the deployment.
type Database struct {
	Name   string // its purpose
	Config pgdb.Config
}

// File is a configuration file.
type File struct {
	Name   string // its purpose, such as "issuers"
	Check  func(ctx context.Context) error
	Advice string
}

// Thresholds of good findings.
const (
	skewMost      = 2 * time.Second // expiry and token checks depend on the machines' clocks
	latencyMost   = 50 * time.Millisecond
	memoryMost    = 80 // percent
	overdueMost   = 10 * time.Minute
	silentMost    = 2 * time.Minute // several times SLUICE_UNIT_SILENCE
	abandonedMost = 15 * time.Minute
	jobsLooked    = 20 // live jobs that are inspected, oldest first
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

// judge adds a finding: good if holds, else the other verdict with the advice.
func (r *report) judge(check string, holds bool, otherwise Verdict, detail, advice string) {
	if holds {
		otherwise = Good
	}
	r.add(check, otherwise, detail, advice)
}

// try adds a finding: good with the detail if err is nil, else bad with the error and the advice.
func (r *report) try(check string, err error, detail, advice string) {
	if err != nil {
		detail = err.Error()
	}
	r.judge(check, err == nil, Bad, detail, advice)
}

// failed adds a bad finding if a read of Redis failed, and reports whether it did.
func (r *report) failed(check string, err error) bool {
	if err != nil {
		r.add(check, Bad, err.Error(), "see the redis findings")
	}
	return err != nil
}

// Doctor checks every dependency and the state of the deployment, and gives advice for each problem. Its only write is one
// object under the prefix doctor/, which it deletes.
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
		r.try(file.Name, err, "readable", file.Advice)
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
		fmt.Sprintf("latency %s", health.Latency.Round(10*time.Microsecond)),
		"Redis is slow or far away: check the load of its machine and SLOWLOG GET")
	r.judge("redis: version", newEnough(health.Version), Bad, cmp.Or(health.Version, unknown), "use Redis 6.2 or later")
	if health.Eviction == "" {
		r.add("redis: eviction", Warning, "maxmemory-policy is unknown", "make sure that the policy is noeviction")
	} else {
		r.judge("redis: eviction", health.Eviction == "noeviction", Bad, "maxmemory-policy is "+health.Eviction,
			"jobs are lost when Redis is full: set maxmemory-policy noeviction with CONFIG SET and in its configuration file")
	}
	switch {
	case health.AOF == "":
		r.add("redis: append-only file", Warning, unknown, "make sure that Redis runs with appendonly yes")
	case health.AOF != "1":
		r.add("redis: append-only file", Bad, "disabled",
			"jobs are lost when Redis restarts: set appendonly yes with CONFIG SET and in its configuration file")
	default:
		r.judge("redis: append-only file", health.AOFStatus == "ok", Bad, "last write: "+cmp.Or(health.AOFStatus, unknown),
			"Redis cannot write its file: check its disk and its log")
	}
	r.judge("redis: role", health.Role == "" || health.Role == "master", Bad, cmp.Or(health.Role, unknown),
		"SLUICE_REDIS_URL is the address of a read-only replica: use that of the master")
	if most := health.MemoryMost; most > 0 {
		percent := 100 * health.Memory / most
		r.judge("redis: memory", percent <= memoryMost, Warning, fmt.Sprintf("%d %% of %d MiB used", percent, most>>20),
			"kick-offs are refused and units wait when Redis is full: raise maxmemory or purge jobs")
	} else {
		r.add("redis: memory", Good, fmt.Sprintf("%d MiB used, no limit", health.Memory>>20), "")
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
		fmt.Sprintf("differs by %s from this machine", skew.Abs().Round(time.Millisecond)),
		"jobs and tokens expire at the wrong time: synchronize both machines with one time server (chronyc tracking)")
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
	waiting := fmt.Sprintf("%d live with %s; no unit waiting", workers, plural.Of(slots, "slot"))
	if pending > 0 {
		waiting = fmt.Sprintf("%d live with %s; %s waiting, the oldest for %s",
			workers, plural.Of(slots, "slot"), plural.Of(pending, "unit"), oldest.Round(time.Second))
	}
	switch {
	case workers == 0 && pending > 0:
		r.add("workers", Bad, waiting, "start workers; if they are running, check their logs and their SLUICE_REDIS_URL")
	case workers == 0:
		r.add("workers", Warning, waiting, "expected with scaling to zero; otherwise start workers")
	default:
		r.judge("workers", oldest < overdueMost, Warning, waiting, "start more workers, or find out why units take so long: "+
			"sluice admin worker list")
	}
	last, err := o.Queue.LastRescue(ctx)
	switch {
	case r.failed("schedulers", err):
	case schedulers == 0:
		r.add("schedulers", Bad, "none live", "start a scheduler: without one, lost units are not rescued and nothing is purged")
	case last.IsZero():
		r.add("schedulers", Bad, fmt.Sprintf("%d live; no rescue has finished recently", schedulers),
			"check their logs for failed passes")
	default:
		r.add("schedulers", Good, fmt.Sprintf("%d live; last rescue %s ago", schedulers,
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
		r.judge("kick-offs", kickoffs.Open, Warning, detail, "sluice admin kickoffs resume, once the reason no longer applies")
	}
	if due, err := o.Jobs.Due(ctx, o.Now(), 0, 1); !r.failed("purges", err) {
		overdue, detail := time.Duration(0), "none overdue"
		if len(due) > 0 {
			overdue = o.Now().Sub(due[0].At)
			detail = fmt.Sprintf("the next one is %s overdue", overdue.Round(time.Second))
		}
		r.judge("purges", overdue < overdueMost, Bad, detail,
			"data is kept past its expiry: check the schedulers' logs and the object store")
	}
	o.examineActive(ctx, r)
}

// examineActive checks the index of live jobs for entries without a job, and the units of live jobs for missing heartbeats.
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
			continue // it ended meanwhile
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
		"lost units are not rescued: check the schedulers; sluice admin unit retry JOB UNIT reruns a unit")
	r.judge("entries without a job", abandoned == 0, Warning, strconv.Itoa(abandoned),
		"schedulers should have removed them: check their logs")
}

func (o *Operator) examineObjects(ctx context.Context, r *report, store *objects.Store) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := store.Check(ctx); err != nil {
		r.add("object store: bucket", Bad, err.Error(),
			"start the store, or correct SLUICE_S3_ENDPOINT, the keys or the network; services create the bucket if permitted")
		return
	}
	r.add("object store: bucket", Good, "exists", "")
	r.try("object store: permissions", probe(ctx, store), "an object can be written, read, listed and deleted",
		"the access key needs PutObject, GetObject, ListBucket, DeleteObject and the multipart upload actions on the bucket")
	begun := o.Now()
	clock, err := store.Clock(ctx)
	if err != nil {
		r.add("object store: clock", Warning, err.Error(), "check the clock of its machine")
		return
	}
	o.compareClocks(r, "object store: clock", clock, o.Now().Sub(begun), time.Second)
}

// probe performs every object operation that services use.
func probe(ctx context.Context, store *objects.Store) (err error) {
	prefix := "doctor/" + rand.Text()
	key := prefix + "/probe"
	content := []byte("written by sluice admin doctor; it may be deleted\n")
	defer func() {
		// A failed step may have left the object behind.
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
		return errors.New("read: the content differs from what was written")
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
		r.add(name+"reachable", Bad, err.Error(), "start it, or correct the URL, the password, sslmode or the network")
		return
	}
	r.judge(name+"reachable", facts.Latency <= latencyMost, Warning,
		fmt.Sprintf("version %s; latency %s", facts.Version, facts.Latency.Round(10*time.Microsecond)),
		"it is slow or far away: check the load of its machine")
	r.judge(name+"encoding", facts.Encoding == "UTF8", Bad, facts.Encoding, "create a database with the encoding UTF8")
	r.try(name+"schema", pgdb.CheckSchema(ctx, database.Config), "up to date",
		"sluice admin migrate, as the owner of the database")
	detail := "all tables are readable"
	if len(facts.Hidden) > 0 {
		detail = "not readable: " + strings.Join(facts.Hidden, ", ")
	}
	r.judge(name+"permissions", len(facts.Hidden) == 0, Bad, detail, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO the user")
	o.compareClocks(r, name+"clock", facts.Clock, facts.Latency, 0)
}
