//go:build long

package e2e

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// desk is a deployment with the operator's page of its scheduler, and an object store whose responses the test can delay.
type desk struct {
	*stack
	page  string // URL of the page
	trail string // the scheduler's audit log
	hold  *holding
}

// holding delays the responses of the store to writes of some types until it is released, and slows down all others, so
// that a test can observe a running export.
type holding struct {
	mu    sync.Mutex
	types []string
	let   chan struct{}
}

// these delays files of these types from now on, and releases those of others.
func (h *holding) these(types ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.types != nil {
		close(h.let)
	}
	h.types, h.let = types, make(chan struct{})
}

func (h *holding) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.types != nil {
		close(h.let)
	}
	h.types = nil
}

func (h *holding) reply(reply *http.Response) error {
	r := reply.Request
	if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, ".ndjson.gz") {
		return nil
	}
	for waited := false; ; waited = true {
		h.mu.Lock()
		held := slices.ContainsFunc(h.types, func(typ string) bool { return strings.Contains(r.URL.Path, "/"+typ+"/") })
		let := h.let
		h.mu.Unlock()
		if !held {
			if !waited {
				time.Sleep(150 * time.Millisecond)
			}
			return nil
		}
		<-let
	}
}

func deployDesk(t *testing.T) desk {
	t.Helper()
	hold := &holding{}
	proxy := objectstest.NewProxy(t, testenv.ObjectStore(t).Endpoint)
	proxy.OnReply(hold.reply)
	trail := filepath.Join(t.TempDir(), "audit.ndjson")
	s := deploy(t, setup{
		data: generated(t, 60), endpoint: proxy.Endpoint(), workers: 2,
		worker:    []string{"SLUICE_WORKER_CONCURRENCY=2", "SLUICE_WORKER_EXPRESS=1", "SLUICE_UNIT_BYTES=100000", "SLUICE_UNIT_BYTES_MOST=100000"},
		scheduler: []string{"SLUICE_AUDIT_LOG=" + trail},
	})
	t.Cleanup(hold.release) // runs before the workers are stopped: cleanups run in reverse order
	scheduler := s.processes[slices.IndexFunc(s.processes, func(p *service) bool { return p.Name() == "scheduler" })]
	return desk{stack: s, page: "http://" + scheduler.ready()["private"] + "/operator/", trail: trail, hold: hold}
}

// jobURL is the page of the job with this status URL.
func (d desk) jobURL(status string) string { return d.page + "jobs/" + jobOf(status) }

func jobOf(status string) string { return regexp.MustCompile(`[a-z2-7]{26}`).FindString(status) }

// status returns the HTTP status of a request by the owner.
func (d desk) status(url string) int {
	resp := d.request(http.MethodGet, url, "everything", nil)
	resp.Body.Close()
	return resp.StatusCode
}

// rehearse runs exports for a minute before the screenshots, so that they show data.
func (d desk) rehearse() {
	if os.Getenv("SLUICE_SCREENSHOTS") == "" {
		return
	}
	queries := []string{"", "?_type=Patient,Observation", "?_type=Condition,Encounter,Procedure", "", "?_type=Observation"}
	for i := range 12 {
		d.wait(d.kickoff("all", queries[i%len(queries)]), time.Minute)
		time.Sleep(4 * time.Second)
	}
}

// tryKickoff returns the response to a kick-off.
func (d desk) tryKickoff() *http.Response {
	return d.request(http.MethodGet, publicBase+"/Group/all/$export?_type=Patient", "everything", nil)
}

// percent reads a job's progress from the text of the page.
func (b *browser) percent() int {
	b.t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(b.text("#head .progress span"), " %"))
	check.Must(b.t, err)
	return n
}

// fits fails if the page is wider than the window, or a control is smaller than 44 pixels.
func (b *browser) fits(what string) {
	b.t.Helper()
	if wide := eval[int](b, "document.documentElement.scrollWidth - window.innerWidth"); wide > 0 {
		b.t.Errorf("%s: %d pixels wider than the window", what, wide)
	}
	small := eval[[]string](b, `[...document.querySelectorAll("main a, header a, button, main input:not([type=hidden]), select")]
		.map(e => e.type === "checkbox" ? e.labels[0] : e).filter(e => e.checkVisibility()).map(e => [e.textContent.trim() || e.name, e.getBoundingClientRect()])
		.filter(([, box]) => box.height < 44 || box.width < 44).map(([name, box]) => name + " " + box.width + "x" + box.height)`)
	if len(small) > 0 {
		b.t.Errorf("%s: controls smaller than 44 pixels: %s", what, strings.Join(small, ", "))
	}
}

// accessible fails if the page lacks what screen readers need.
func (b *browser) accessible(what string) {
	b.t.Helper()
	missing := eval[[]string](b, `[
		document.documentElement.lang ? "" : "a language",
		document.title ? "" : "a title",
		document.querySelectorAll("h1").length === 1 ? "" : "one h1",
		document.querySelector("main") ? "" : "a main part",
		...[...document.querySelectorAll("input:not([type=hidden]), select")].filter(e => e.labels.length === 0).map(e => "a label of " + e.name),
		...[...document.querySelectorAll("table")].filter(e => e.querySelectorAll("th[scope=col]").length === 0).map(() => "headers of a table"),
		...[...document.querySelectorAll("progress")].filter(e => !e.nextElementSibling?.textContent.includes("%")).map(() => "progress in words"),
		...[...document.querySelectorAll("svg")].filter(e => !e.querySelector("title")?.textContent).map(() => "words for a picture"),
		...[...document.querySelectorAll("[aria-labelledby]")].filter(e => !document.getElementById(e.getAttribute("aria-labelledby"))).map(e => "the label of " + e.id),
		...[...document.querySelectorAll("td:not(.actions)")].filter(e => !e.dataset.label).map(() => "the name of a cell"),
	].filter(text => text)`)
	if len(missing) > 0 {
		b.t.Errorf("%s lacks %s", what, strings.Join(missing, ", "))
	}
}

func TestOperatorsPage(t *testing.T) {
	d := deployDesk(t)
	whole := d.lines(d.wait(d.kickoff("all", ""), time.Minute).Output)
	d.rehearse()
	b := openBrowser(t)
	b.desktop()

	// Live progress: the page changes without a reload.
	d.hold.these("Observation", "Encounter", "Condition")
	status := d.kickoff("all", "")
	b.open(d.jobURL(status))
	eval[bool](b, "window.sameDocument = true")
	first := b.percent()
	d.hold.these("Observation", "Encounter") // some progress is visible even if the browser was slow
	check.Eventually(t, time.Minute, "the page shows progress", func() bool { return b.percent() > first })
	if !eval[bool](b, "window.sameDocument === true") {
		t.Error("the page was loaded again")
	}
	check.Eventually(t, time.Minute, "units of both delayed types run", func() bool {
		text := b.text("#units")
		return strings.Contains(text, "Observation-") && strings.Contains(text, "Encounter-") && strings.Contains(text, "running")
	})
	b.accessible("a job")
	b.picture("operator-job-desktop.png")
	second := d.kickoff("all", "?_type=Patient,Observation")
	b.open(d.page)
	check.Eventually(t, time.Minute, "the throughput is drawn", func() bool { return eval[int](b, "document.querySelectorAll('rect.bar').length") > 0 })
	b.accessible("the overview")
	for _, want := range []string{"running", "completed"} {
		if !strings.Contains(b.text("#jobs"), want) {
			t.Errorf("the overview shows no job that is %s", want)
		}
	}
	for _, want := range []string{"short units", "long units"} {
		if !strings.Contains(b.text("#queues"), want) {
			t.Errorf("the overview does not show the queue %s", want)
		}
	}
	if n := eval[int](b, "document.querySelectorAll('#workers tbody tr').length"); n != 2 {
		t.Errorf("the overview shows %d workers, want 2", n)
	}
	b.picture("operator-desktop.png")
	b.prefer("dark")
	b.picture("operator-desktop-dark.png")
	b.prefer("light")
	b.wallboard()
	b.open(d.page)
	if wide := eval[int](b, "document.documentElement.scrollWidth - window.innerWidth"); wide > 0 {
		t.Errorf("%d pixels wider than a wallboard", wide)
	}
	if !eval[bool](b, `document.getElementById("workers").getBoundingClientRect().left >= document.getElementById("jobs").getBoundingClientRect().right`) {
		t.Error("the workers are not beside the jobs on a wallboard")
	}
	b.screen("operator-wallboard.png")

	// On a phone everything fits into the window, and controls are large enough.
	b.phone()
	b.open(d.page)
	b.fits("the overview")
	b.screen("operator-phone.png")
	eval[bool](b, "document.getElementById('jobs').scrollIntoView(), true")
	b.screen("operator-phone-jobs.png")
	b.open(d.jobURL(status))
	b.fits("a job")
	b.screen("operator-job-phone.png")

	// Jobs are chosen from those that are live.
	b.open(d.page)
	b.follow(`a[href="/operator/cancel"]`, "form[method=post] button")
	b.fits("the choice of jobs")
	b.accessible("the choice of jobs")
	if text := b.text(".choices"); !strings.Contains(text, jobOf(status)) || !strings.Contains(text, jobOf(second)) {
		t.Errorf("the choice of jobs is %q", text)
	}
	b.open(d.jobURL(status))

	// A unit is given up and retried, on the phone.
	b.follow(`a[href$="/units/running/fail"]`, "form[method=post] button")
	unit := eval[string](b, `[...document.querySelectorAll("form input[name=id]")].map(box => box.value)
		.find(id => id.startsWith("Observation-"))`)
	box := `input[value="` + unit + `"]`
	b.follow(box, box+":checked")
	b.fits("a confirmation")
	b.accessible("a confirmation")
	b.screen("operator-confirm-phone.png")
	b.follow("form[method=post] button", "main > .notice.good")
	if text := b.text("#units .group"); !strings.Contains(text, "failed") || !strings.Contains(text, "1 unit") {
		t.Errorf("the first group of units is %q, want one that failed", text)
	}
	if text := b.text("#units tbody tr"); !strings.Contains(text, unit) || !strings.Contains(text, "given up by an operator") {
		t.Errorf("the first unit is %q, want %s", text, unit)
	}
	b.follow(`a[href$="/units/failed/retry"]`, box+":checked")
	b.follow("form[method=post] button", "main > .notice.good")
	check.Eventually(t, time.Minute, "the unit is not failed", func() bool { return !strings.Contains(b.text("#units"), "failed") })

	// A job is cancelled; its owner then gets 404.
	b.desktop()
	b.open(d.jobURL(second))
	b.follow(`a[href$="/cancel"]`, "form[method=post] button")
	if text := b.text("main"); !strings.Contains(text, jobOf(second)) {
		t.Errorf("the confirmation does not name the job: %s", text)
	}
	if got := d.status(second); got != http.StatusAccepted {
		t.Errorf("a job whose cancel is not yet confirmed: status %d", got)
	}
	b.follow("form[method=post] button", "main > .notice.good")
	if got := d.status(second); got != http.StatusNotFound {
		t.Errorf("a cancelled job: status %d, want 404", got)
	}
	d.hold.release()
	expect.SameLines(t, "after a unit was given up and retried", d.lines(d.wait(status, time.Minute).Output), whole)

	// Intake, without scripts.
	b.scripts(false)
	b.open(d.page)
	b.follow(`a[href$="/kickoffs/pause"]`, "form[method=post] button")
	b.fill("input[name=reason]", `<b id="injected">Redis & co. are moved</b>`)
	b.follow("form[method=post] button", ".notice.warn")
	if text := b.text("#kickoffs"); !strings.Contains(text, `<b id="injected">Redis & co. are moved</b>`) {
		t.Errorf("the reason is shown as %q", text)
	}
	if resp := d.tryKickoff(); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a kick-off while kick-offs are paused: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	b.follow(`a[href$="/kickoffs/resume"]`, "form[method=post] button")
	b.follow("form[method=post] button", "#kickoffs .notice.good")
	b.scripts(true)
	resp := d.tryKickoff()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("a kick-off after kick-offs were resumed: %s", resp.Status)
	}
	third := resp.Header.Get("Content-Location")
	d.wait(third, time.Minute)

	// A finished job is purged early.
	b.open(d.jobURL(third))
	b.follow(`a[href$="/purge"]`, "form[method=post] button")
	b.follow("form[method=post] button", "main > .notice.good")
	if got := d.status(third); got != http.StatusNotFound {
		t.Errorf("a purged job: status %d, want 404", got)
	}
	check.Eventually(t, time.Minute, "its objects are gone", func() bool {
		return !slices.ContainsFunc(d.objectKeys(), func(key string) bool { return strings.Contains(key, jobOf(third)) })
	})

	// A worker is drained: it exits with 0, and the page shows one worker less.
	b.open(d.page)
	b.follow(`#workers a[href$="/drain"]`, "form[method=post] button")
	b.follow("form[method=post] button", "main > .notice.good")
	check.Eventually(t, time.Minute, "a worker has ended", func() bool {
		return slices.ContainsFunc(d.processes, func(p *service) bool {
			select {
			case <-p.Exited():
				return p.Name() == "worker" && p.ExitCode() == 0
			default:
				return false
			}
		})
	})

	// Every change is in the audit log.
	trail, err := os.ReadFile(d.trail)
	check.Must(t, err)
	for _, want := range []string{
		"giving up unit " + unit, "retry of unit " + unit, "pause of kick-offs", "resumption of kick-offs", "drain of worker",
		jobOf(second), jobOf(third), "urn:sluice:operator-page",
	} {
		if !strings.Contains(string(trail), want) {
			t.Errorf("the audit log has no %q", want)
		}
	}
}

// Forms without a token, from another site, for another host name or with the token of another action are refused.
func TestForgedFormsChangeNothing(t *testing.T) {
	d := deployDesk(t)
	d.hold.these("Observation")
	status := d.kickoff("all", "")
	cancel := d.jobURL(status) + "/cancel"
	jar, err := cookiejar.New(nil)
	check.Must(t, err)
	client := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	tokenOf := func(from string) string {
		t.Helper()
		resp, err := client.Get(from)
		check.Must(t, err)
		body, err := io.ReadAll(resp.Body)
		check.Must(t, err)
		resp.Body.Close()
		found := regexp.MustCompile(`name="token" value="([^"]+)"`).FindSubmatch(body)
		if found == nil {
			t.Fatalf("%s: %s holds no token", from, resp.Status)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
			"Cache-Control": "no-store", "Set-Cookie": "",
		} {
			if !strings.Contains(resp.Header.Get(name), want) {
				t.Errorf("%s is %q", name, resp.Header.Get(name))
			}
		}
		return string(found[1])
	}
	token := tokenOf(cancel)
	page, err := url.Parse(d.page)
	check.Must(t, err)
	origin := strings.TrimSuffix(d.page, "/operator/")
	cookies := jar.Cookies(page)
	if len(cookies) != 1 {
		t.Fatalf("%d cookies", len(cookies))
	}
	send := func(to, token, host string, header http.Header, cookie string) int {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, to, strings.NewReader(url.Values{"token": {token}}.Encode()))
		check.Must(t, err)
		req.Header = header.Clone()
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Host = host
		if cookie != "" {
			req.AddCookie(&http.Cookie{Name: cookies[0].Name, Value: cookie})
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		check.Must(t, err)
		resp.Body.Close()
		return resp.StatusCode
	}
	ours, foreign := http.Header{"Origin": {origin}}, http.Header{"Origin": {"https://elsewhere.example"}}
	for name, row := range map[string]struct {
		to, token, host string
		header          http.Header
		cookie          string
		want            int
	}{
		"no token":                 {cancel, "", "", ours, cookies[0].Value, http.StatusForbidden},
		"no cookie":                {cancel, token, "", ours, "", http.StatusForbidden},
		"another browser's cookie": {cancel, token, "", ours, "SOMEBODYELSE", http.StatusForbidden},
		"a foreign origin":         {cancel, token, "", foreign, cookies[0].Value, http.StatusForbidden},
		"a foreign site":           {cancel, token, "", http.Header{"Sec-Fetch-Site": {"cross-site"}}, cookies[0].Value, http.StatusForbidden},
		"a sibling site":           {cancel, token, "", http.Header{"Sec-Fetch-Site": {"same-site"}}, cookies[0].Value, http.StatusForbidden},
		"another name":             {cancel, token, "rebound.example", ours, cookies[0].Value, http.StatusMisdirectedRequest},
		"another step's token":     {d.page + "kickoffs/pause", token, "", ours, cookies[0].Value, http.StatusForbidden},
		"a token of our own":       {cancel, strings.Repeat("A", len(token)), "", ours, cookies[0].Value, http.StatusForbidden},
	} {
		if got := send(row.to, row.token, row.host, row.header, row.cookie); got != row.want {
			t.Errorf("%s: %d, want %d", name, got, row.want)
		}
	}
	resp, err := client.Get(cancel + "?token=" + token) // a GET changes nothing
	check.Must(t, err)
	resp.Body.Close()

	// A real browser on another site: the form submits itself, as on a hostile page.
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<form method="post" action="`+cancel+`"><input name="token" value="`+token+`"></form>
			<script>document.forms[0].submit()</script>`)
	}))
	t.Cleanup(elsewhere.Close)
	b := openBrowser(t)
	b.open(cancel) // so that the browser has a cookie of the page
	b.open(strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1))
	check.Eventually(t, time.Minute, "the form is refused", func() bool {
		return strings.Contains(eval[string](b, "document.body.innerText"), "Nothing was changed")
	})

	if got := d.status(status); got != http.StatusAccepted {
		t.Errorf("the job's status is %d after the forged forms, want 202", got)
	}
	if resp := d.tryKickoff(); resp.StatusCode != http.StatusAccepted {
		t.Errorf("a kick-off: %s: kick-offs are not accepted", resp.Status)
	}
	trail, err := os.ReadFile(d.trail)
	check.Must(t, err)
	if n := strings.Count(string(trail), "this form"); n < 9 {
		t.Errorf("%d refusals are recorded, want 9", n)
	}
	// The valid form works, so the others were not refused for another reason.
	if got := send(cancel, token, "", ours, cookies[0].Value); got != http.StatusSeeOther {
		t.Errorf("the valid form: %d", got)
	}
	if got := d.status(status); got != http.StatusNotFound {
		t.Errorf("the job's status is %d after it was cancelled, want 404", got)
	}
}
