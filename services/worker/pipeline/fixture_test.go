package pipeline_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a worker on a real Redis and a real object store, with a source and a directory that the test sets. Tests
// run it unit by unit, without the delays of a queue.
type fixture struct {
	t        *testing.T
	cfg      pipeline.Config
	url      string // of Redis
	jobs     *jobstore.Store
	tasks    *queue.Client
	objects  *objects.Store
	place    objects.Config     // of the objects
	proxy    *objectstest.Proxy // between the worker and the object store
	source   source.Source
	people   *people
	registry *prometheus.Registry
	log      *testenv.Buffer
	beats    chan struct{} // receives a value whenever the job store reads the clock
	wrong    time.Duration // by how much the clock of the worker is ahead of that of Redis
}

// instant is the time of all tests.
var instant = time.Date(2030, 1, 1, 12, 0, 0, 123456789, time.UTC)

var owner = export.Owner{Issuer: "https://issuer.example", Subject: "somebody"}

const groupID = "the-group"

// newFixture returns a fixture with a group of the members.
func newFixture(t *testing.T, src source.Source, members ...string) *fixture {
	t.Helper()
	return newFixtureOn(t, testenv.Redis(t), src, members...)
}

func newFixtureOn(t *testing.T, url string, src source.Source, members ...string) *fixture {
	t.Helper()
	fx := &fixture{
		t: t, url: url, source: src, registry: prometheus.NewRegistry(), log: &testenv.Buffer{}, beats: make(chan struct{}, 1),
		people: &people{
			members:  members,
			grant:    directory.Grant{Types: directory.Everything(), Groups: directory.Only(groupID)},
			patients: directory.NameList{All: true},
		},
	}
	fx.cfg = envconfig.Defaults[pipeline.Config]()
	fx.cfg.MaxAttempts = 3
	fx.cfg.Heartbeat = 5 * time.Millisecond
	var err error
	fx.jobs, err = jobstore.Open(url, func() time.Time {
		select {
		case fx.beats <- struct{}{}:
		default:
		}
		return instant
	})
	must(t, err)
	fx.tasks, err = queue.Open(url)
	must(t, err)
	s3 := testenv.ObjectStore(t)
	fx.proxy = objectstest.NewProxy(t, s3.Endpoint)
	fx.place = objects.Config{
		Endpoint: fx.proxy.Endpoint(), AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	}
	fx.objects, err = objects.Open(fx.place)
	must(t, err)
	must(t, fx.objects.EnsureBucket(t.Context()))
	t.Cleanup(func() {
		fx.objects.Close()
		must(t, errors.Join(fx.tasks.Close(), fx.jobs.Close()))
		// The prefix of every patient id in these tests.
		if strings.Contains(fx.log.String(), "pat-") {
			t.Errorf("the log names a patient: %s", fx.log)
		}
	})
	return fx
}

// worker returns a new worker: workers have no state between units.
func (fx *fixture) worker() *pipeline.Worker {
	fx.t.Helper()
	fx.registry = prometheus.NewRegistry()
	worker, err := pipeline.New(fx.cfg, pipeline.Deps{
		Jobs: fx.jobs, Queue: fx.tasks, Objects: fx.objects, Source: fx.source, Groups: fx.people, Access: fx.people,
		Bases: fhir.Bases{"https://ehr.example/fhir"},
		Now:   func() time.Time { return instant.Add(fx.wrong) }, Logger: slog.New(slog.NewJSONHandler(fx.log, nil)), Registry: fx.registry,
	})
	must(fx.t, err)
	return worker
}

// kickOff records a job as the API does.
func (fx *fixture) kickOff(types ...string) export.JobID {
	fx.t.Helper()
	return fx.ask(export.Request{GroupID: groupID, Types: types})
}

// ask records a job of the request.
func (fx *fixture) ask(request export.Request) export.JobID {
	fx.t.Helper()
	request.URL = "https://x/fhir" + map[export.Level]string{
		export.GroupLevel: "/Group/" + request.GroupID, export.PatientLevel: "/Patient", export.SystemLevel: "",
	}[request.AtLevel()] + "/$export?_type=x"
	request.Types = slices.Sorted(slices.Values(request.Types)) // a copy: parallel callers share theirs
	job := export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: instant, Owner: owner, Request: request,
	}
	fx.record(job)
	return job.ID
}

func (fx *fixture) record(job export.Job) {
	fx.t.Helper()
	_, err := fx.jobs.Create(fx.t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: 1000})
	must(fx.t, err)
}

// claimed returns the fence of a claim of the task with the fence.
func claimed(fence int64) int64 { return max(fence+1, instant.UnixMilli()) }

// stale returns all units that a rescue enqueues after the silence.
func (fx *fixture) stale(id export.JobID, silence time.Duration) []export.Lease {
	fx.t.Helper()
	lost, unclaimed, err := fx.jobs.RescueStale(fx.t.Context(), id, silence, 1000)
	must(fx.t, err)
	return append(lost, unclaimed...)
}

// open returns the tasks of the job's open units, as the scheduler's rescue finds them. Claimed units count as lost and
// get a new fence.
func (fx *fixture) open(id export.JobID) []queue.Task {
	fx.t.Helper()
	ctx := fx.t.Context()
	_, err := fx.jobs.Issue(ctx, id, 1000)
	if errors.Is(err, export.ErrNotLive) {
		return nil
	}
	must(fx.t, err)
	var tasks []queue.Task
	for _, unit := range fx.stale(id, -24*time.Hour) {
		tasks = append(tasks, queue.Task{Kind: unit.Unit.Kind, Job: id, Unit: unit.Unit.ID, Fence: unit.Fence})
	}
	return tasks
}

// finish runs the worker on every task of the job until there is none.
func (fx *fixture) finish(w *pipeline.Worker, id export.JobID) export.Job {
	fx.t.Helper()
	return fx.drive(id, func(task queue.Task) { must(fx.t, w.Handle(fx.t.Context(), task)) })
}

// drive passes every task of the job to the function until there is none, and returns the job.
func (fx *fixture) drive(id export.JobID, do func(queue.Task)) export.Job {
	fx.t.Helper()
	for range 200 {
		tasks := fx.open(id)
		if len(tasks) == 0 {
			job, err := fx.jobs.Job(fx.t.Context(), id)
			must(fx.t, err)
			if job.State.Live() {
				fx.t.Fatalf("the job is %s and has no task (pitfall 7)", job.State)
			}
			return job
		}
		for _, task := range tasks {
			do(task)
		}
	}
	fx.t.Fatal("the job has not ended after 200 rounds")
	panic("unreachable")
}

// export runs one job to its end and returns its outcome.
func (fx *fixture) export(types ...string) outcome {
	fx.t.Helper()
	return fx.outcome(fx.finish(fx.worker(), fx.kickOff(types...)))
}

// outcome is what a client receives.
type outcome struct {
	job     export.Job
	lines   map[string][]string // by type, sorted
	issues  []fhir.Issue        // of the error files
	deleted []string            // lines of the deleted files
	files   []export.File
}

// outcome reads the manifest and every listed file, and checks each against its entry.
func (fx *fixture) outcome(job export.Job) outcome {
	fx.t.Helper()
	o := outcome{job: job, lines: map[string][]string{}}
	if job.State != export.Completed {
		if job.Manifest != "" {
			fx.t.Errorf("a %s job has a manifest", job.State)
		}
		return o
	}
	names := map[string]bool{}
	manifest := fx.read(job.Manifest)
	if len(manifest) == 0 {
		return o
	}
	for _, entry := range lines(fx.t, manifest) {
		var file export.File
		must(fx.t, json.Unmarshal([]byte(entry), &file))
		o.files = append(o.files, file)
		if names[file.Name] || names[file.Key] {
			fx.t.Errorf("%s is listed twice (pitfall 13)", file.Name)
		}
		names[file.Name], names[file.Key] = true, true
		if file.Error != (file.Type == "OperationOutcome") {
			fx.t.Errorf("%s: type %s, error %v", file.Name, file.Type, file.Error)
		}
		// The seal's own files are in its result too.
		if recorded, err := fx.jobs.File(fx.t.Context(), job.ID, file.Name); err != nil || recorded != file {
			fx.t.Errorf("%s is %+v in the manifest and %+v in the record: %v", file.Name, file, recorded, err)
		}
		// The sweep would delete a listed file of a lost attempt.
		origin, ok := export.ParseKey(file.Key)
		current, err := fx.jobs.Published(fx.t.Context(), []export.Origin{origin})
		if err != nil || !ok || !current[0] {
			fx.t.Errorf("%s is not of the attempt that was committed: %v", file.Key, err)
		}
		for _, line := range fx.readFile(file) {
			if file.Deleted {
				o.deleted = append(o.deleted, line)
				continue
			}
			if !file.Error {
				o.lines[file.Type] = append(o.lines[file.Type], line)
				continue
			}
			var report fhir.OperationOutcome
			must(fx.t, json.Unmarshal([]byte(line), &report))
			o.issues = append(o.issues, report.Issue...)
		}
	}
	for _, of := range o.lines {
		slices.Sort(of)
	}
	for _, issue := range o.issues {
		if strings.Contains(issue.Diagnostics, "pat-") {
			fx.t.Errorf("an issue names a patient: %s", issue.Diagnostics)
		}
	}
	return o
}

func (fx *fixture) read(key string) []byte {
	fx.t.Helper()
	body, err := fx.objects.Open(fx.t.Context(), key, 0, -1)
	must(fx.t, err)
	data, err := io.ReadAll(body)
	must(fx.t, errors.Join(err, body.Close()))
	return data
}

func (fx *fixture) readFile(file export.File) []string {
	fx.t.Helper()
	stored := fx.read(file.Key)
	sum := sha256.Sum256(stored)
	unzip, err := gzip.NewReader(bytes.NewReader(stored))
	must(fx.t, err)
	plain, err := io.ReadAll(unzip)
	must(fx.t, err)
	found := lines(fx.t, plain)
	if file.Stored != int64(len(stored)) || file.SHA256 != hex.EncodeToString(sum[:]) ||
		file.Bytes != int64(len(plain)) || file.Count != int64(len(found)) || file.Count == 0 {
		fx.t.Errorf("%+v is not what is stored: %d bytes, %d plain, %d lines", file, len(stored), len(plain), len(found))
	}
	return found
}

func lines(t *testing.T, data []byte) []string {
	t.Helper()
	text, ended := strings.CutSuffix(string(data), "\n")
	if !ended {
		t.Error("the last line has no line break")
	}
	return strings.Split(text, "\n")
}

// wantLines checks that exactly these lines were exported, each once.
func (o outcome) wantLines(t *testing.T, want ...string) {
	t.Helper()
	if o.job.State != export.Completed {
		t.Fatalf("the job is %s: %s", o.job.State, o.job.Failure)
	}
	var got []string
	for _, of := range o.lines {
		got = append(got, of...)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("got %d lines:\n%s\nwant %d:\n%s", len(got), strings.Join(got, "\n"), len(want), strings.Join(want, "\n"))
	}
}

// wantIssues checks that there is one issue per text, in any order. Most tests have fewer Patient resources than members;
// only TestMembersThatTheDataDoesNotHaveAreTold looks at that.
func (o outcome) wantIssues(t *testing.T, severity string, texts ...string) {
	t.Helper()
	left := slices.Clone(o.issues)
	for _, text := range texts {
		at := slices.IndexFunc(left, func(issue fhir.Issue) bool {
			if severity == "" {
				return strings.HasPrefix(issue.Severity+": "+issue.Diagnostics, text)
			}
			return issue.Severity == severity && strings.Contains(issue.Diagnostics, text)
		})
		if at < 0 {
			t.Errorf("no %s contains %q: %+v", severity, text, o.issues)
			continue
		}
		left = slices.Delete(left, at, at+1)
	}
	left = slices.DeleteFunc(left, func(issue fhir.Issue) bool {
		return strings.HasSuffix(issue.Diagnostics, export.MemberMissing.Text()+".")
	})
	if len(left) > 0 {
		t.Errorf("more issues than expected: %+v", left)
	}
}

// metric sums the named counters or gauges that have all of the label values.
func (fx *fixture) metric(name string, labels ...string) float64 {
	fx.t.Helper()
	families, err := fx.registry.Gather()
	must(fx.t, err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			values := map[string]bool{}
			for _, pair := range metric.GetLabel() {
				values[pair.GetValue()] = true
			}
			if !slices.ContainsFunc(labels, func(label string) bool { return !values[label] }) {
				sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (fx *fixture) wantMetric(want float64, name string, labels ...string) {
	fx.t.Helper()
	if got := fx.metric(name, labels...); got != want {
		fx.t.Errorf("%s%v is %v, want %v", name, labels, got, want)
	}
}

// people is a directory with one group and one grant.
type people struct {
	members  []string
	joined   map[string]time.Time // when members joined; the others always were
	grant    directory.Grant
	leftOut  []export.LeftOut
	patients directory.NameList
	changed  *directory.Grant // by the time the patients are read
	err      error
}

func (p *people) Exists(context.Context, string) error { return p.err }

func (p *people) Members(_ context.Context, group string, yield func(string) error) ([]export.LeftOut, error) {
	if group != groupID {
		return nil, directory.ErrNoGroup
	}
	for _, member := range p.members {
		if err := yield(member); err != nil {
			return nil, err
		}
	}
	return p.leftOut, p.err
}

func (p *people) Joined(_ context.Context, id string, since time.Time, yield func(string) error) error {
	if id != groupID {
		return directory.ErrNoGroup
	}
	for member, at := range p.joined {
		if at.After(since) {
			if err := yield(member); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *people) Find(context.Context, []string, string, func(directory.Details) error) error {
	panic("the worker finds no groups")
}

func (p *people) Unknown(context.Context, string, []string) ([]string, error) {
	panic("the worker looks up no patients")
}

func (p *people) Grant(_ context.Context, asked export.Owner) (directory.Grant, error) {
	if asked != owner {
		return directory.Grant{}, nil
	}
	return p.grant, nil
}

func (p *people) Patients(
	_ context.Context, asked export.Owner, use func(directory.Grant, *directory.PatientFilter) error,
) error {
	if asked != owner {
		return use(directory.Grant{}, directory.NameList{}.Filter())
	}
	grant := p.grant
	if p.changed != nil {
		grant = *p.changed
	}
	return use(grant, p.patients.Sorted().Filter())
}

// The resources that most tests use. Patients 1 to 3 are members of the group, 9 is not.
var members = []string{"pat-1", "pat-2", "pat-3"}

func patient(n int) string { return fmt.Sprintf(`{"resourceType":"Patient","id":"pat-%d"}`, n) }

func observation(id, patient any, more ...string) string {
	return fmt.Sprintf(`{"resourceType":"Observation","id":"obs-%v","subject":{"reference":"Patient/pat-%v"}%s}`,
		id, patient, strings.Join(more, ""))
}

func condition(id, patient any) string {
	return fmt.Sprintf(`{"resourceType":"Condition","id":"con-%v","subject":{"reference":"Patient/pat-%v"}}`, id, patient)
}

func appointment(id any, patients ...string) string {
	var actors []string
	for _, patient := range patients {
		actors = append(actors, fmt.Sprintf(`{"actor":{"reference":"Patient/%s"}}`, patient))
	}
	return fmt.Sprintf(`{"resourceType":"Appointment","id":"app-%v","participant":[%s]}`, id, strings.Join(actors, ","))
}

func provenance(id any, targets ...string) string {
	var refs []string
	for _, target := range targets {
		refs = append(refs, fmt.Sprintf(`{"reference":"%s"}`, target))
	}
	return fmt.Sprintf(`{"resourceType":"Provenance","id":"pro-%v","target":[%s]}`, id, strings.Join(refs, ","))
}

// resource returns the line as a source returns it, whatever its content.
func resource(typ, id, line string, subjects ...string) source.Resource {
	return source.Resource{Type: typ, ID: id, Subjects: subjects, Body: []byte(line)}
}

func concat[T any](lists ...[]T) []T { return slices.Concat(lists...) }

func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitLog waits until the log contains the text.
func (fx *fixture) waitLog(text string) {
	fx.t.Helper()
	for began := time.Now(); !strings.Contains(fx.log.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > patience {
			fx.t.Fatalf("the log does not contain %q", text)
		}
	}
}

// patience bounds waiting.
const patience = 30 * time.Second

func wait[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatal("timed out")
		panic("unreachable")
	}
}
