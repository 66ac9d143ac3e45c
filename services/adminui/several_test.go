package adminui

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/ops"
)

var tokenForm = regexp.MustCompile(`name="token" value="([^"]+)"`)

// submit opens the confirmation page at the path and sends its form with these ids.
func submit(t *testing.T, page *Page, path string, ids ...export.JobID) (status int, body string) {
	t.Helper()
	opened := httptest.NewRecorder()
	page.ServeHTTP(opened, httptest.NewRequest(http.MethodGet, "http://localhost:9090"+path, nil))
	token := tokenForm.FindStringSubmatch(opened.Body.String())
	if token == nil {
		t.Fatalf("%s: %d, no form:\n%s", path, opened.Code, opened.Body)
	}
	form := url.Values{"token": {token[1]}}
	for _, id := range ids {
		form.Add("id", string(id))
	}
	action, _, _ := strings.Cut(path, "?")
	r := httptest.NewRequest(http.MethodPost, "http://localhost:9090"+action, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, cookie := range opened.Result().Cookies() { //nolint:bodyclose // a recorder's
		r.AddCookie(cookie)
	}
	sent := httptest.NewRecorder()
	page.ServeHTTP(sent, r)
	return sent.Code, sent.Body.String()
}

// kickOff creates a job with two export units of each of the types, of which the plan is committed.
func kickOff(t *testing.T, page *Page, types ...string) export.JobID {
	t.Helper()
	ctx, jobs, id := t.Context(), page.operator.Jobs, export.NewJobID()
	_, err := jobs.Create(ctx, export.Job{
		ID: id, State: export.Scheduled, Created: time.Now(), Owner: export.Owner{Issuer: "i", Subject: "s"},
		Request: export.Request{GroupID: "diabetes", Types: []string{"Patient"}},
	}, export.FirstUnit(), jobstore.Admission{Limit: 100})
	must(t, err)
	if len(types) == 0 {
		return id
	}
	plan, err := jobs.Claim(ctx, id, export.PlanUnit, export.KindPlan, 1, "")
	must(t, err)
	var units []export.Unit
	for _, typ := range types {
		for _, number := range []string{"-00000", "-00001"} {
			units = append(units, export.Unit{ID: export.UnitID(typ + number), Kind: export.KindExport, Type: typ})
		}
	}
	must(t, jobs.Stage(ctx, plan, units))
	must(t, jobs.Commit(ctx, plan, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: time.Now()}}))
	_, err = jobs.Issue(ctx, id, 100)
	must(t, err)
	return id
}

// actions lists what the audit log says, the oldest first.
func actions(t *testing.T, page *Page) string {
	t.Helper()
	entries, err := page.operator.Audit.Recent(agentIssuer, 100)
	must(t, err)
	var texts []string
	for _, entry := range entries {
		texts = append([]string{string(entry.Action) + " " + entry.Target + " " + string(entry.Outcome)}, texts...)
	}
	return strings.Join(texts, ", ")
}

// Units in the same state share the buttons, units in the queue have none, and the form acts on the chosen units.
func TestUnitsInTheSameState(t *testing.T) {
	page := open(t, testenv.Redis(t))
	ctx, jobs := t.Context(), page.operator.Jobs
	id := kickOff(t, page, "Observation", "Condition", "Encounter")
	for _, unit := range []export.UnitID{"Observation-00000", "Observation-00001"} {
		must(t, jobs.GiveUp(ctx, id, unit, "its data is unreadable", export.Unit{}))
	}
	for _, unit := range []export.UnitID{"Condition-00000", "Condition-00001"} {
		_, err := jobs.Claim(ctx, id, unit, export.KindExport, 1, "")
		must(t, err)
	}
	base := jobPath(id)
	_, body := get(t, page, "GET", base)
	for link, want := range map[string]int{
		"/units/failed/retry": 1, "/units/failed/fail": 0, "/units/running/retry": 1, "/units/running/fail": 1,
		"/units/queued/": 0, "its data is unreadable": 2, "Fence": 0,
	} {
		if got := strings.Count(body, link); got != want {
			t.Errorf("the page of the job has %q %d times, want %d", link, got, want)
		}
	}
	if status, body := get(t, page, "GET", base+"/units/queued/retry"); status != http.StatusBadRequest {
		t.Errorf("the form for queued units: %d\n%s", status, body)
	}
	_, body = get(t, page, "GET", base+"/units/failed/retry")
	if n := strings.Count(body, " checked>"); n != 2 {
		t.Errorf("%d units are chosen in advance, want both failed ones:\n%s", n, body)
	}
	if status, body := submit(t, page, base+"/units/failed/retry"); status != http.StatusBadRequest || !strings.Contains(body, "Nothing was chosen") {
		t.Errorf("a form without a choice: %d\n%s", status, body)
	}
	if got := actions(t, page); got != "" {
		t.Errorf("the audit log has %s", got)
	}
	if status, body := submit(t, page, base+"/units/failed/retry", "Observation-00000", "Observation-00001"); status != http.StatusSeeOther {
		t.Errorf("retry of both: %d\n%s", status, body)
	}
	if status, body := submit(t, page, base+"/units/running/fail", "Condition-00001"); status != http.StatusSeeOther {
		t.Errorf("giving up one: %d\n%s", status, body)
	}
	lease, err := jobs.Claim(ctx, id, "Encounter-00000", export.KindExport, 1, "")
	must(t, err)
	must(t, jobs.Commit(ctx, lease, jobstore.Commit{}))
	if status, body := submit(t, page, base+"/units/running/retry", "Encounter-00000", "Condition-00000"); status != http.StatusConflict ||
		!strings.Contains(body, "1 of 2 were changed") {
		t.Errorf("one that is done and another: %d\n%s", status, body)
	}
	want := "admin retry of unit Observation-00000 success, admin retry of unit Observation-00001 success, " +
		"admin giving up unit Condition-00001 success, " +
		"admin retry of unit Encounter-00000 success, admin retry of unit Encounter-00000 refused, " +
		"admin retry of unit Condition-00000 success"
	if got := actions(t, page); got != want {
		t.Errorf("the audit log has %s, want %s", got, want)
	}
	detail, err := page.operator.Inspect(ctx, id)
	must(t, err)
	if got := unitCounts(detail.Units); got != "1 failed, 4 queued, 2 done" {
		t.Errorf("units: %s", got)
	}
	// The overview shows the actions; one that was refused once.
	_, body = get(t, page, "GET", "/operator/")
	if n := strings.Count(body, "retry of unit Encounter-00000"); n != 1 || !strings.Contains(body, "address 192.0.2.1") {
		t.Errorf("the overview has the refused action %d times, want once:\n%s", n, body)
	}
}

func TestCancelSeveral(t *testing.T) {
	page := open(t, testenv.Redis(t))
	one, two, three := kickOff(t, page), kickOff(t, page), kickOff(t, page)
	failed := kickOff(t, page)
	must(t, page.operator.Jobs.FailJob(t.Context(), failed, "the group has no members", time.Now(), time.Now().Add(time.Hour)))
	states := func(want string) {
		t.Helper()
		var got []string
		for _, id := range []export.JobID{one, two, three, failed} {
			job, err := page.operator.Jobs.Job(t.Context(), id)
			must(t, err)
			got = append(got, string(job.State))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("the jobs are %s, want %s", got, want)
		}
	}
	_, body := get(t, page, "GET", "/operator/?group=dia")
	if !strings.Contains(body, `href="/operator/cancel?group=dia"`) || !strings.Contains(body, "the group has no members") ||
		!strings.Contains(body, "Sluice "+buildinfo.Of().String()) {
		t.Errorf("the overview lacks the action, the reason of the failure or the version:\n%s", body)
	}
	_, body = get(t, page, "GET", "/operator/cancel?group=dia")
	if strings.Count(body, `type="checkbox"`) != 3 || strings.Contains(body, string(failed)) || strings.Contains(body, " checked>") {
		t.Errorf("the form has not the three live jobs:\n%s", body)
	}
	_, body = get(t, page, "GET", "/operator/?job="+string(two[:6]))
	if !strings.Contains(body, string(two)) || strings.Contains(body, jobPath(one)+`"`) {
		t.Errorf("the search for %s has the list\n%s", two[:6], body)
	}
	if status, _ := get(t, page, "POST", "/operator/cancel"); status != http.StatusForbidden {
		t.Errorf("a form without a token: %d", status)
	}
	if status, _ := submit(t, page, "/operator/cancel", "../x"); status != http.StatusNotFound {
		t.Errorf("what is not a job: %d", status)
	}
	states("scheduled scheduled scheduled failed")
	if status, body := submit(t, page, "/operator/cancel?group=dia", one, three); status != http.StatusSeeOther {
		t.Errorf("cancel of two: %d\n%s", status, body)
	}
	states("cancelled scheduled cancelled failed")
	if got := actions(t, page); got != "cancel  success, cancel  success" {
		t.Errorf("the audit log has %s", got)
	}
}

// The confirmation names running units only for a job that can have some.
func TestCancelText(t *testing.T) {
	page := open(t, testenv.Redis(t))
	id := kickOff(t, page)
	if _, body := get(t, page, "GET", jobPath(id)+"/cancel"); !strings.Contains(body, "Running units stop") {
		t.Errorf("a live job:\n%s", body)
	}
	must(t, page.operator.Jobs.FailJob(t.Context(), id, "x", time.Now(), time.Now().Add(time.Hour)))
	page.details.clear()
	if _, body := get(t, page, "GET", jobPath(id)+"/cancel"); strings.Contains(body, "units") {
		t.Errorf("an ended job:\n%s", body)
	}
}

// A job's page shows its owner as logs do, its speed, and why it waits.
func TestJobFacts(t *testing.T) {
	page := open(t, testenv.Redis(t))
	id := kickOff(t, page, "Observation")
	owner := export.Owner{Issuer: "i", Subject: "s"}.Hash()
	_, body := get(t, page, "GET", jobPath(id))
	for _, want := range []string{"/operator/?owner=" + owner, "<dt>Time left</dt><dd>unknown", "No worker is running. Open units: 2."} {
		if !strings.Contains(body, want) {
			t.Errorf("the page of the job lacks %q:\n%s", want, body)
		}
	}
	view := jobView{Detail: ops.Detail{Job: ops.Job{ID: id, State: export.Running, Owner: strings.Repeat("0", 64)}, Rate: 12_400_000}}
	view.Left.Duration = 3 * time.Minute
	recorder := httptest.NewRecorder()
	page.render(recorder, http.StatusOK, "job.html", jobPage{Job: view})
	if body := recorder.Body.String(); !strings.Contains(body, "about 3 min") || !strings.Contains(body, "12.4 MB/s on average") {
		t.Errorf("the speed is not shown:\n%s", body)
	}
}
