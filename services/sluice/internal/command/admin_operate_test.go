package command

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

const deskKey = "0123456789abcdef0123456789abcdef"

// desk holds the stores of a deployment without services.
type desk struct {
	t     *testing.T
	url   string
	log   string
	jobs  *jobstore.Store
	tasks *queue.Client
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	return newDeskOn(t, testenv.Redis(t))
}

func newDeskOn(t *testing.T, url string) *desk {
	t.Helper()
	for _, line := range os.Environ() {
		if name, _, _ := strings.Cut(line, "="); strings.HasPrefix(name, "SLUICE_") && !strings.HasPrefix(name, "SLUICE_TEST_") {
			t.Setenv(name, "")
		}
	}
	d := &desk{t: t, url: url, log: filepath.Join(t.TempDir(), "audit.ndjson")}
	t.Setenv("SLUICE_REDIS_URL", d.url)
	t.Setenv("SLUICE_AUDIT_LOG", d.log)
	t.Setenv("SLUICE_AUDIT_KEY", deskKey)
	var err error
	if d.jobs, err = jobstore.Open(d.url, nil); err != nil {
		t.Fatal(err)
	}
	if d.tasks, err = queue.Open(d.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.tasks.Close(), d.jobs.Close()); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *desk) must(err error) {
	d.t.Helper()
	must(d.t, err)
}

// do runs an admin command.
func (d *desk) do(code int, contains string, args ...string) string {
	d.t.Helper()
	return do(d.t, code, contains, append([]string{"admin"}, args...)...)
}

// serve runs a worker until the test ends.
func (d *desk) serve(handlers queue.Handlers) {
	ctx, stop := context.WithCancel(context.WithoutCancel(d.t.Context()))
	served := make(chan error, 1)
	cfg := queue.ServerConfig{URL: d.url, Concurrency: 3, Logger: slog.New(slog.DiscardHandler)}
	go func() { served <- queue.Serve(ctx, cfg, handlers) }()
	d.t.Cleanup(func() { stop(); d.must(<-served) })
}

func (d *desk) eventually(holds func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			d.t.Fatal("timeout waiting for the condition")
		}
	}
}

// answer sets standard input.
func (d *desk) answer(text string) {
	d.t.Helper()
	read, write, err := os.Pipe()
	d.must(err)
	_, err = write.WriteString(text)
	d.must(errors.Join(err, write.Close()))
	before := os.Stdin
	os.Stdin = read
	d.t.Cleanup(func() { os.Stdin = before; _ = read.Close() })
}

var deskOwner = export.Owner{Issuer: "https://login.example.org", Subject: "research-team"}

// running creates a job with two queued units, the state after the plan.
func (d *desk) running() export.JobID {
	d.t.Helper()
	id := export.NewJobID()
	d.runs(id)
	return id
}

func (d *desk) runs(id export.JobID) {
	d.t.Helper()
	ctx := d.t.Context()
	_, err := d.jobs.Create(ctx, export.Job{
		ID: id, State: export.Scheduled, Created: time.Now().Add(-time.Hour), Owner: deskOwner,
		Request: export.Request{URL: "https://x/fhir/Group/g/$export?_type=Patient", GroupID: "g", Types: []string{"Condition", "Patient"}},
	}, export.FirstUnit(), jobstore.Admission{Limit: 100})
	d.must(err)
	plan, err := d.jobs.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, "")
	d.must(err)
	d.must(d.jobs.Stage(ctx, plan, []export.Unit{
		{ID: "Patient-00000", Kind: export.KindExport, Type: "Patient", Bytes: 100},
		{ID: "Condition-00000", Kind: export.KindExport, Type: "Condition", Bytes: 200},
	}))
	d.must(d.jobs.Commit(ctx, plan, jobstore.Commit{
		Plan: &jobstore.Plan{Snapshot: time.Now(), Cohort: export.Cohort{Patients: 7}},
		Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
	_, err = d.jobs.Issue(ctx, id, 10)
	d.must(err)
}

// actions verifies the audit log and returns one word per event.
func (d *desk) actions() string {
	d.t.Helper()
	file, err := os.Open(d.log)
	d.must(err)
	defer file.Close()
	report, err := audit.Verify(audit.Proof{Key: []byte(deskKey)}, audit.Input{Name: "log", Reader: file})
	d.must(err)
	if report.Problem != nil || len(report.Chains) != 1 {
		d.t.Fatalf("%d chains, %v", len(report.Chains), report.Problem)
	}
	text, err := os.ReadFile(d.log)
	d.must(err)
	var words []string
	for line := range strings.Lines(string(text)) {
		var event struct {
			Outcome string `json:"outcome"`
			Subtype []struct {
				Code string `json:"code"`
			} `json:"subtype"`
			Entity []struct {
				Name string `json:"name"`
			} `json:"entity"`
		}
		d.must(json.Unmarshal([]byte(line), &event))
		word := event.Subtype[0].Code + ":" + event.Outcome
		for _, entity := range event.Entity {
			if entity.Name != "" {
				word += ":" + entity.Name
			}
		}
		if event.Subtype[0].Code != "start" && event.Subtype[0].Code != "stop" {
			words = append(words, word)
		}
	}
	return strings.Join(words, "\n")
}

func TestAdminJobAndUnit(t *testing.T) {
	d := newDesk(t)
	id := string(d.running())
	list := d.do(0, "running", "job", "list")
	for _, word := range []string{id, "1h0m", deskOwner.Hash()} {
		if !strings.Contains(list, word) {
			t.Errorf("%s is not in\n%s", word, list)
		}
	}
	page := decode[struct {
		Jobs []struct {
			Owner    string
			Patients int
		}
		States map[string]int
	}](t, d.do(0, "", "job", "list", "--json", "--state", "running", "--older", "30m", "--owner", deskOwner.Hash()))
	if len(page.Jobs) != 1 || page.Jobs[0].Owner != deskOwner.Key() || page.States["running"] != 1 || page.Jobs[0].Patients != 7 {
		t.Errorf("%+v", page)
	}
	if d.do(0, "", "job", "list", "--state", "failed"); strings.Contains(d.do(0, "", "job", "list", "--older", "2h"), id) {
		t.Error("a filter has no effect")
	}

	d.do(0, "is queued again", "unit", "retry", id, "Patient-00000")
	d.do(1, "not confirmed", "unit", "fail", id, "Condition-00000")
	d.answer("no\n")
	d.do(1, "not confirmed", "unit", "fail", id, "Condition-00000")
	d.answer("yes\n")
	d.do(0, "has failed", "unit", "fail", id, "Condition-00000")
	d.do(1, "cancel the job", "unit", "fail", id, "plan", "--yes")
	d.do(1, "no such", "unit", "retry", id, "Nothing-00000")
	shown := d.do(0, "given up by an operator", "job", "show", id)
	for _, word := range []string{"Patient-00000", "queued", "failed", "operator", "Group/g: Condition,Patient", deskOwner.Key()} {
		if !strings.Contains(shown, word) {
			t.Errorf("%s is not in\n%s", word, shown)
		}
	}
	if strings.Contains(shown+list, deskOwner.Subject) || strings.Contains(shown, "$export") {
		t.Errorf("the subject or the URL is in\n%s%s", list, shown)
	}
	detail := decode[struct {
		Units []struct {
			State string
			Fence int
		}
	}](t, d.do(0, "", "job", "show", id, "--json", "--units", "all"))
	if len(detail.Units) != 3 || detail.Units[1].State != "queued" || detail.Units[1].Fence != 2 {
		t.Errorf("%+v", detail)
	}

	d.do(1, "it is live; cancel it", "job", "purge", id, "--yes")
	d.do(0, "cancelled job", "job", "cancel", id, "--yes")
	d.do(0, "cancelled job", "job", "cancel", id, "--yes")
	d.do(1, "the job has ended", "unit", "retry", id, "Patient-00000")
	d.do(0, "a scheduler deletes", "job", "purge", id, "--yes")
	want := strings.Join([]string{
		"admin:0:retry of unit Patient-00000", "admin:0:giving up unit Condition-00000",
		"admin:0:giving up unit plan", "admin:4:giving up unit plan",
		"admin:0:retry of unit Nothing-00000", "admin:4:retry of unit Nothing-00000",
		"expire:0", "expire:4", "cancel:0", "cancel:0",
		"admin:0:retry of unit Patient-00000", "admin:4:retry of unit Patient-00000", "expire:0",
	}, "\n")
	if got := d.actions(); got != want {
		t.Errorf("recorded:\n%s\nwant\n%s", got, want)
	}
	text, err := os.ReadFile(d.log)
	d.must(err)
	if !strings.Contains(string(text), `"system":"urn:sluice:os-user"`) {
		t.Error("the log does not contain the user")
	}
}

// The tables show that data is missing in a completed job, and what.
func TestAdminJobShowsWhatIsLeftOut(t *testing.T) {
	d := newDesk(t)
	id, ctx := d.running(), t.Context()
	for _, unit := range []export.UnitID{"Patient-00000", "Condition-00000", export.SealUnit} {
		kind, commit := export.KindExport, jobstore.Commit{Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal}}
		switch unit {
		case "Condition-00000":
			commit.Result.LeftOut = []export.LeftOut{{Type: "Condition", Reason: export.ForeignPatient, Count: 4}}
		case export.SealUnit:
			_, err := d.jobs.Issue(ctx, id, 10)
			d.must(err)
			kind = export.KindSeal
			commit = jobstore.Commit{
				Result: export.Result{Files: []export.File{{Name: "e", Type: "OperationOutcome", Error: true, Count: 1}}},
				Seal:   &jobstore.Seal{Manifest: "m", Finished: time.Now(), Expires: time.Now().Add(time.Hour)},
			}
		}
		lease, err := d.jobs.Claim(ctx, id, unit, kind, 1, "")
		d.must(err)
		d.must(d.jobs.Commit(ctx, lease, commit))
	}
	d.do(0, "completed (data is missing)", "job", "list")
	d.do(0, "completed (data is missing)", "job", "show", string(id))
	d.do(0, export.ForeignPatient.Text(), "job", "show", string(id))
	d.do(0, "\"incomplete\": true", "job", "list", "--json")
}

// A finished job expires at once; a scheduler purges it.
func TestAdminJobPurge(t *testing.T) {
	d := newDesk(t)
	id := d.running()
	d.must(d.jobs.FailJob(t.Context(), id, "why", time.Now(), time.Now().Add(time.Hour)))
	for range 2 { // the second time before the scheduler runs
		d.do(0, "has expired", "job", "purge", string(id), "--yes")
	}
	if job, err := d.jobs.Job(t.Context(), id); err != nil || job.State != export.Expired {
		t.Errorf("%s, %v", job.State, err)
	}
	d.do(1, "no such job", "job", "show", string(export.NewJobID()))
}

// The beginning of an id stands for a job only if it is unique.
func TestAdminJobByPrefix(t *testing.T) {
	d := newDesk(t)
	const one, other = "abcdefgh2222222222222222aa", "abcdefgh3333333333333333aa"
	d.runs(one)
	d.runs(other)
	d.do(0, one, "job", "show", "abcdefgh2")
	d.do(1, "the ids of 2 jobs begin with abcdefgh: "+one+","+other, "job", "show", "abcdefgh")
	d.do(1, "the ids of 2 jobs", "job", "cancel", "--yes", "abcdef")
	d.do(1, "no such job: no id begins with zzzzzz", "job", "cancel", "--yes", "zzzzzz")
	for _, bad := range []string{"abcde", "ABCDEF", one + "a", ""} {
		d.do(2, "is not a job id", "job", "cancel", "--yes", bad)
	}
	d.answer("no\n")
	if _, _, asked := run(t, "admin", "job", "cancel", "abcdefgh2"); !strings.Contains(asked, "Cancel job "+one+" ") {
		t.Errorf("the question does not have the whole id: %s", asked)
	}
	d.do(0, "unit Patient-00000 of job "+other, "unit", "retry", "abcdefgh3", "Patient-00000")
	d.do(0, "cancelled job "+one, "job", "cancel", "--yes", "abcdefgh2")
	for id, want := range map[export.JobID]export.State{one: export.Cancelled, other: export.Running} {
		if job, err := d.jobs.Job(t.Context(), id); err != nil || job.State != want {
			t.Errorf("%s: %s, %v, want %s", id, job.State, err, want)
		}
	}
}

func TestAdminKickoffs(t *testing.T) {
	d := newDesk(t)
	d.do(0, "open", "kickoffs", "show")
	d.do(0, "until they are resumed", "kickoffs", "pause", "--reason", "the array is being rebuilt")
	d.do(0, "the array is being rebuilt", "kickoffs", "show")
	d.do(0, "are paused until 2", "kickoffs", "pause", "--reason", "two", "--for", "30m")
	state := decode[map[string]any](t, d.do(0, "", "kickoffs", "show", "--json"))
	if state["open"] != false || state["reason"] != "two" || state["until"] == nil {
		t.Errorf("%v", state)
	}
	d.do(0, "kick-offs are accepted", "kickoffs", "resume")
	for _, contains := range []string{"pause of kick-offs", "resumption of kick-offs"} {
		if got := d.actions(); !strings.Contains(got, contains) {
			t.Errorf("%s is not in\n%s", contains, got)
		}
	}
}

func TestAdminWorker(t *testing.T) {
	d := newDesk(t)
	d.do(0, "steering", "worker", "list")
	d.do(1, "no such worker", "worker", "drain", "elsewhere:1", "--yes")
	d.do(1, "no such worker", "worker", "drain", "no id", "--yes")
	d.serve(queue.Handlers{Unit: func(context.Context, queue.Task) error { return nil }})
	id, err := queue.ProcessID()
	d.must(err)
	d.eventually(func() bool { return strings.Contains(d.do(0, "", "worker", "list"), id) })
	d.do(0, "cannot be drained", "worker", "list")
	d.do(1, "does not take drain orders", "worker", "drain", id, "--yes")
	output := decode[struct {
		Workers []struct{ Slots int }
		Queues  []struct{ Queue string }
	}](t, d.do(0, "", "worker", "list", "--json"))
	if len(output.Workers) != 1 || output.Workers[0].Slots != 3 || len(output.Queues) != 4 {
		t.Errorf("%+v", output)
	}
}

// A change that cannot be recorded is not made, and a usage error names the argument.
func TestAdminOperateRefuses(t *testing.T) {
	d := newDesk(t)
	id := string(d.running())
	for _, test := range []struct {
		contains string
		args     []string
	}{
		{"is not a job id", []string{"job", "show", "X"}},
		{"is not a job id", []string{"unit", "retry", "X", "plan"}},
		{"--state", []string{"job", "list", "--state", "sleeping"}},
		{"--owner", []string{"job", "list", "--owner", "alice"}},
		{"--limit", []string{"job", "list", "--limit", "0"}},
		{"--units", []string{"job", "show", id, "--units", "some"}},
		{"reason", []string{"kickoffs", "pause"}},
		{"--reason", []string{"kickoffs", "pause", "--reason", "a\nb"}},
		{"--for", []string{"kickoffs", "pause", "--reason", "x", "--for", "-1s"}},
		{"admin kickoffs --help", []string{"kickoffs"}},
	} {
		d.do(2, test.contains, test.args...)
	}
	t.Setenv("SLUICE_AUDIT_LOG", "")
	d.do(2, "--audit-log", "kickoffs", "pause", "--reason", "x")
	d.do(1, "--audit-log: ", "kickoffs", "pause", "--reason", "x", "--audit-log", filepath.Join(t.TempDir(), "no", "such"))
	t.Setenv("SLUICE_AUDIT_KEY", "short")
	d.do(2, "SLUICE_AUDIT_KEY", "kickoffs", "pause", "--reason", "x", "--audit-log", d.log)
	t.Setenv("SLUICE_AUDIT_KEY", deskKey)
	busy, err := audit.Open(audit.Config{Path: d.log, Process: "another", Key: []byte(deskKey), Now: time.Now})
	d.must(err)
	d.do(1, "another process writes it", "job", "cancel", id, "--yes", "--audit-log", d.log)
	d.must(busy.Close())
	d.do(0, "open", "kickoffs", "show")
	if job, err := d.jobs.Job(t.Context(), export.JobID(id)); err != nil || job.State != export.Running {
		t.Errorf("%s, %v", job.State, err)
	}
	t.Setenv("SLUICE_REDIS_URL", "")
	d.do(2, "SLUICE_REDIS_URL", "job", "list")
	d.do(2, "SLUICE_REDIS_URL", "job", "cancel", id, "--yes", "--audit-log", d.log)
	d.do(1, "unavailable", "job", "list", "--redis", "redis://127.0.0.1:1")
}

func TestAdminDoctor(t *testing.T) {
	d := newDeskOn(t, testenv.RedisServer(t, "--appendonly", "yes"))
	type report struct {
		Findings []struct{ Check, Verdict, Detail, Advice string }
		Left     []string `json:"skipped"`
	}
	verdicts := func(code int) map[string]string {
		t.Helper()
		got, stdout, stderr := run(t, "admin", "doctor", "--json")
		if got != code {
			t.Fatalf("exit %d, want %d: %s%s", got, code, stdout, stderr)
		}
		found := map[string]string{}
		for _, one := range decode[report](t, stdout).Findings {
			found[one.Check] = one.Verdict
			if (one.Advice == "") != (one.Verdict == "good") {
				t.Errorf("%+v", one)
			}
		}
		return found
	}
	s3 := testenv.ObjectStore(t)
	database := testenv.Postgres(t)
	t.Setenv("SLUICE_S3_ENDPOINT", s3.Endpoint)
	t.Setenv("SLUICE_S3_ACCESS_KEY", s3.AccessKey)
	t.Setenv("SLUICE_S3_SECRET_KEY", s3.SecretKey)
	t.Setenv("SLUICE_S3_BUCKET", s3.Bucket)
	t.Setenv("SLUICE_SOURCE_URL", database)
	issuers := write(t, "issuers: nonsense\n")
	t.Setenv("SLUICE_TOKEN_ISSUERS_FILE", issuers)
	before := verdicts(1)
	for check, want := range map[string]string{
		"redis: reachable": "good", "redis: eviction": "good", "redis: clock": "good", "schedulers": "bad", "workers": "warning",
		"object store: bucket": "bad", "postgresql (source): reachable": "good", "postgresql (source): schema": "bad",
		"postgresql (source): clock": "good", "issuers": "bad", "kick-offs": "good", "purges": "good",
	} {
		if before[check] != want {
			t.Errorf("%s is %q, want %q", check, before[check], want)
		}
	}

	store, err := objects.Open(objects.Config{Endpoint: s3.Endpoint, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket})
	d.must(err)
	defer store.Close()
	d.must(store.EnsureBucket(t.Context()))
	d.do(0, "the schema", "migrate", "--database", database)
	d.must(os.WriteFile(issuers, []byte(`issuers: [{name: "https://a.example", audiences: [x], jwks_url: "https://a.example/jwks"}]`), 0o600))
	d.must(d.jobs.PauseKickoffs(t.Context(), jobstore.Pause{Reason: "x"}))
	nothing := func(context.Context, string) error { return nil }
	d.serve(queue.Handlers{Unit: func(context.Context, queue.Task) error { return nil }, Pass: nothing, Rescue: nothing})
	d.must(d.tasks.EnqueueRescue(t.Context(), "rescue", time.Now(), time.Hour))
	d.eventually(func() bool {
		last, err := d.tasks.LastRescue(t.Context())
		d.must(err)
		list, err := d.tasks.Processes(t.Context())
		d.must(err)
		return !last.IsZero() && len(list) == 1
	})
	for check, verdict := range verdicts(0) {
		if want := map[bool]string{true: "warning", false: "good"}[check == "kick-offs"]; verdict != want {
			t.Errorf("%s is %s, want %s", check, verdict, want)
		}
	}
	left := 0
	d.must(store.List(t.Context(), "doctor/", func(objects.Info) error { left++; return nil }))
	if left > 0 {
		t.Errorf("%d objects of the doctor are left", left)
	}
	if text := d.do(0, "-> sluice admin kickoffs resume", "doctor"); !strings.Contains(text, "object store: permissions") {
		t.Error(text)
	}

	d.do(1, "start Redis", "doctor", "--redis", "redis://127.0.0.1:1")
	t.Setenv("SLUICE_S3_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("SLUICE_SOURCE_URL", "postgres://127.0.0.1:1/d?sslmode=disable")
	t.Setenv("SLUICE_REDIS_URL", testenv.RedisServer(t, "--maxmemory-policy", "allkeys-lru"))
	after := verdicts(1)
	if after["object store: bucket"] != "bad" || after["postgresql (source): reachable"] != "bad" {
		t.Errorf("%v", after)
	}
	if after["redis: eviction"] != "bad" || after["redis: append-only file"] != "bad" {
		t.Errorf("%v", after)
	}
}

// Changes of clients and groups need no audit log, but are recorded if there is one.
func TestAdminChangesAreRecorded(t *testing.T) {
	d := newDesk(t)
	database := testenv.Postgres(t)
	register := func(id string) []string {
		return []string{"client", "register", "--id", id, "--jwks-url", "https://app.example/jwks", "--scope", "system/*.rs"}
	}
	d.do(0, "the schema", "migrate", "--database", database)
	d.do(0, "registered client app", register("app")...)
	d.do(1, "already registered", register("app")...)
	d.do(0, "", "group", "create", "study", "p1", "--database", database)
	d.do(0, "", "grant", "set", "--issuer", "i", "--subject", "s", "--types", "all", "--groups", "all", "--patients", "all",
		"--database", database)
	d.do(0, "imported 1 grant", "grant", "import", write(t, "- {issuer: i, subject: t, types: all, groups: all, patients: all}\n"),
		"--yes", "--database", database)
	d.do(0, "removed", "grant", "remove", "--issuer", "i", "--subject", "t", "--yes", "--database", database)
	d.do(0, "deleted", "group", "delete", "study", "--yes", "--database", database)
	want := strings.Join([]string{
		"admin:0:schema of the database", "admin:0:registration of client app", "admin:0:registration of client app",
		"admin:8:registration of client app", "admin:0:create of Group/study",
		"admin:0:grant of owner " + export.Owner{Issuer: "i", Subject: "s"}.Hash(), "admin:0:replacement of all grants by 1",
		"admin:0:removal of the grant of owner " + export.Owner{Issuer: "i", Subject: "t"}.Hash(),
		"admin:0:deletion of Group/study",
	}, "\n")
	if got := d.actions(); got != want {
		t.Errorf("recorded:\n%s\nwant\n%s", got, want)
	}
	t.Setenv("SLUICE_AUDIT_LOG", filepath.Join(t.TempDir(), "no", "such"))
	d.do(1, "SLUICE_AUDIT_LOG", register("other")...)
	d.do(1, "not registered", "client", "show", "--id", "other")
	t.Setenv("SLUICE_AUDIT_LOG", "")
	d.do(0, "registered client other", register("other")...)
}
