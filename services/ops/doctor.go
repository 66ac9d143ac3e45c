package ops

import (
	"bytes"
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

// Verdict is what a check came to.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Warning Verdict = "warning" // it works, and somebody should look at it
	Bad     Verdict = "bad"     // it does not work, or data is at risk
)

// Finding is what a check has found.
type Finding struct {
	Check   string // such as "redis: eviction"
	Verdict Verdict
	Detail  string // what was found
	Advice  string // what to do about it; "" when it is good
}

// Patient is what a Doctor looks at besides what its Operator has. What is nil or empty is not looked at.
type Patient struct {
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
	jobsLooked    = 20 // at work, the oldest, for silent units
	checkTimeout  = 20 * time.Second
)

// report collects findings.
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

// Doctor checks every dependency and the state of the deployment, and says of each finding what to do. All that it writes
// is one object under the prefix doctor/, which it deletes again.
func (o *Operator) Doctor(ctx context.Context, patient Patient) []Finding {
	r := &report{}
	if o.examineRedis(ctx, r) {
		o.examineProcesses(ctx, r)
		o.examineJobs(ctx, r)
	}
	if patient.Objects != nil {
		o.examineObjects(ctx, r, patient.Objects)
	}
	for _, database := range patient.Databases {
		o.examineDatabase(ctx, r, database)
	}
	for _, file := range patient.Files {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		err := file.Check(ctx)
		cancel()
		detail := "it can be read"
		if err != nil {
			detail = err.Error()
		}
		r.judge(file.Name, err == nil, Bad, detail, file.Advice)
	}
	return r.findings
}

func (o *Operator) examineRedis(ctx context.Context, r *report) (reachable bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	health, err := o.Jobs.Health(ctx)
	if err != nil {
		r.add("redis: reachable", Bad, err.Error(), "start Redis, or mend SLUICE_REDIS_URL, its password, or the network")
		return false
	}
	r.judge("redis: reachable", health.Latency <= latencyMost, Warning,
		fmt.Sprintf("it answers in %s", health.Latency.Round(10*time.Microsecond)),
		"Redis is slow or far away: see whether its machine is busy, or SLOWLOG GET")
	r.judge("redis: version", newEnough(health.Version), Bad, orUnknown(health.Version), "use Redis 6.2 or later")
	switch health.Eviction {
	case "":
		r.add("redis: eviction", Warning, "it does not tell its maxmemory-policy", "see that it is noeviction")
	default:
		r.judge("redis: eviction", health.Eviction == "noeviction", Bad, "maxmemory-policy is "+health.Eviction,
			"jobs are lost when Redis is full: CONFIG SET maxmemory-policy noeviction, and in its configuration file")
	}
	switch {
	case health.AOF == "":
		r.add("redis: append-only file", Warning, "it does not tell", "see that it runs with appendonly yes")
	case health.AOF != "1":
		r.add("redis: append-only file", Bad, "there is none",
			"jobs are lost when Redis restarts: CONFIG SET appendonly yes, and in its configuration file")
	default:
		r.judge("redis: append-only file", health.AOFStatus == "ok", Bad, "its last write: "+orUnknown(health.AOFStatus),
			"Redis cannot write its file: look at its disk and its log")
	}
	r.judge("redis: role", health.Role == "" || health.Role == "master", Bad, orUnknown(health.Role),
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
		r.add("queue: reachable", Bad, err.Error(), "start Redis, or mend SLUICE_REDIS_URL")
		return false
	}
	return true
}

func orUnknown(text string) string {
	if text == "" {
		return "it does not tell"
	}
	return text
}

// newEnough reports whether a version is 6.2 or later, or not told.
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
	if err != nil {
		r.add("processes", Bad, err.Error(), "see the findings about Redis")
		return
	}
	queues, err := o.Queue.Waiting(ctx)
	if err != nil {
		r.add("queues", Bad, err.Error(), "see the findings about Redis")
		return
	}
	workers, slots, schedulers := 0, 0, 0
	for _, process := range processes {
		if process.Units && !process.Draining {
			workers++
			slots += process.Slots
		}
		if process.Upkeep && !process.Draining {
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
	last, err := o.Queue.LastWatch(ctx)
	switch {
	case err != nil:
		r.add("schedulers", Bad, err.Error(), "see the findings about Redis")
	case schedulers == 0:
		r.add("schedulers", Bad, "none is alive", "start one: without it lost units wait, and nothing is purged")
	case last.IsZero():
		r.add("schedulers", Bad, fmt.Sprintf("%d are alive; none has looked for silent units lately", schedulers),
			"look at their logs: their duties fail")
	default:
		r.add("schedulers", Good, fmt.Sprintf("%d are alive; silent units were looked for %s ago", schedulers,
			o.Now().Sub(last).Round(time.Second)), "")
	}
}

func (o *Operator) examineJobs(ctx context.Context, r *report) {
	intake, err := o.Intake(ctx)
	if err != nil {
		r.add("intake", Bad, err.Error(), "sluice admin intake resume, or pause it anew")
	} else {
		detail := "open"
		if !intake.Open {
			detail = "paused since " + intake.Pause.Since.UTC().Format(time.RFC3339)
		}
		r.judge("intake", intake.Open, Warning, detail, "sluice admin intake resume, when the reason is gone")
	}
	if due, err := o.Jobs.Due(ctx, o.Now(), 1); err != nil {
		r.add("purges", Bad, err.Error(), "see the findings about Redis")
	} else {
		overdue, detail := time.Duration(0), "none is overdue"
		if len(due) > 0 {
			overdue = o.Now().Sub(due[0].At)
			detail = fmt.Sprintf("the next one is %s overdue", overdue.Round(time.Second))
		}
		r.judge("purges", overdue < overdueMost, Bad, detail,
			"data outlives its time: look at the schedulers' logs and at the object store")
	}
	o.examineActive(ctx, r)
}

// examineActive looks at the index of jobs at work: for entries that lead nowhere, and for units that nobody rescues.
func (o *Operator) examineActive(ctx context.Context, r *report) {
	entries, err := o.Jobs.Active(ctx, 0, listMost)
	if err != nil {
		r.add("jobs at work", Bad, err.Error(), "see the findings about Redis")
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
		case err != nil:
			r.add("jobs at work", Bad, err.Error(), "see the findings about Redis")
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
			if unit.State == UnitRunning && unit.Silent > silentMost {
				silent = append(silent, fmt.Sprintf("%s of %s", unit.ID, job.ID))
			}
		}
	}
	told := fmt.Sprintf("%d; no unit is silent", live)
	if len(silent) > 0 {
		told = fmt.Sprintf("%d; silent for minutes: %s", live, strings.Join(silent, ", "))
	}
	r.judge("jobs at work", len(silent) == 0, Bad, told,
		"lost units are not rescued: look at the schedulers; sluice admin unit retry JOB UNIT starts one elsewhere")
	r.judge("entries without a job", abandoned == 0, Warning, strconv.Itoa(abandoned),
		"schedulers should have removed them: look at their logs")
}

func (o *Operator) examineObjects(ctx context.Context, r *report, store *objects.Store) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := store.Check(ctx); err != nil {
		r.add("object store: bucket", Bad, err.Error(),
			"start it, mend SLUICE_S3_ENDPOINT, the keys or the network; a service makes the bucket if its user may")
		return
	}
	r.add("object store: bucket", Good, "it is there", "")
	detail := "an object can be written, read, listed and deleted"
	err := probe(ctx, store)
	if err != nil {
		detail = err.Error()
	}
	r.judge("object store: permissions", err == nil, Bad, detail,
		"the access key needs PutObject, GetObject, ListBucket and DeleteObject on the bucket, and those of multipart uploads")
	begun := o.Now()
	clock, err := store.Clock(ctx)
	if err != nil {
		r.add("object store: clock", Warning, err.Error(), "it does not tell its time: see that its machine has the right one")
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
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if deleted != 1 {
		return fmt.Errorf("delete: %d objects, want the one that was written", deleted)
	}
	return nil
}

func (o *Operator) examineDatabase(ctx context.Context, r *report, database Database) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	name := "postgresql (" + database.Name + "): "
	facts, err := pgdb.Examine(ctx, database.Config)
	if err != nil {
		r.add(name+"reachable", Bad, err.Error(), "start it, or mend the URL, its password, sslmode, or the network")
		return
	}
	r.judge(name+"reachable", facts.Latency <= latencyMost, Warning,
		fmt.Sprintf("version %s; it answers in %s", facts.Version, facts.Latency.Round(10*time.Microsecond)),
		"it is slow or far away: see whether its machine is busy")
	r.judge(name+"encoding", facts.Encoding == "UTF8", Bad, facts.Encoding, "create the database anew with the encoding UTF8")
	detail := "it is as this program needs it"
	if err = pgdb.CheckSchema(ctx, database.Config); err != nil {
		detail = err.Error()
	}
	r.judge(name+"schema", err == nil, Bad, detail, "sluice admin migrate, as the owner of the database")
	detail = "every table can be read"
	if len(facts.Hidden) > 0 {
		detail = "it may not read " + strings.Join(facts.Hidden, ", ")
	}
	r.judge(name+"permissions", len(facts.Hidden) == 0, Bad, detail, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO the user")
	o.compareClocks(r, name+"clock", facts.Clock, facts.Latency, 0)
}
