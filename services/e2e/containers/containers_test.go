//go:build containers

// Package containers tests docker-compose.yml with a real engine: `make containers-test`.
package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
	"github.com/sluice-fhir/sluice/services/ops"
)

const (
	patients = 2600
	cpu      = 5                // percent of a processor for each worker during the faults
	outage   = 30 * time.Second // longer than SLUICE_UNIT_SILENCE
	jobLimit = 5                // SLUICE_JOB_LIMIT
)

// TestTheSystemInContainers starts the system with `make up`, runs the commands that it prints, exports the population
// while containers are scaled, killed, paused, restarted and cut off, and removes everything with `make down`.
func TestTheSystemInContainers(t *testing.T) {
	s := newSystem(t)
	s.run("make", "down") // what a killed run left
	events := time.Now()
	sampling, stop := context.WithCancel(t.Context())
	sampled := make(chan struct{})
	go func() {
		s.peaks.watch(sampling, s.engine)
		close(sampled)
	}()
	t.Cleanup(func() {
		stop()
		<-sampled
		s.end(t)
	})

	s.step("make up PATIENTS=%d", patients)
	started := s.start("make", "up", "PATIENTS="+strconv.Itoa(patients))
	truth, ids := s.population()
	s.step("the same population was read")
	up := started()
	s.step("everything is up")
	s.allWell()
	s.observability()
	s.targets(map[string]int{"api": 1, "auth": 1, "scheduler": 1, "worker": 1})

	s.step("the printed commands")
	s.quickstart(up, truth)

	lost := s.faults()
	s.step("%d exports are completed", len(s.exports))
	s.throttle(0)
	for _, r := range s.exports {
		s.verify(r, truth)
		s.step("export %s is complete and equals the population", r.job)
	}
	if got := s.attempts(); !maps.Equal(got, lost) {
		t.Errorf("failed attempts of units: %v; want those of the kill only: %v", got, lost)
	}

	s.allWell()
	s.targets(map[string]int{"api": 1, "auth": 1, "scheduler": 1, "worker": 1})
	s.step("sluice admin doctor:\n%s", s.compose("run", "--rm", "--no-TTY", "sluice", "admin", "doctor"))
	s.nothingOrphaned()
	s.readLogs(ids)
	s.memory()
	if oom := s.run("docker", "events", "--since", strconv.FormatInt(events.Unix(), 10), "--until",
		strconv.FormatInt(time.Now().Unix(), 10),
		"--filter", "event=oom", "--filter", "label=com.docker.compose.project="+project); oom != "" {
		t.Errorf("out of memory: %s", oom)
	}

	s.step("make down")
	s.run("make", "down")
	if left := s.leftovers(); left != "" {
		t.Errorf("make down has left %s", left)
	}
	s.step("the end")
}

// end removes everything, also after a failure, whose reason the logs of the containers may have.
func (s *system) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if _, err := os.Stat(s.state); err == nil {
		if t.Failed() {
			logs, _ := s.command(ctx, "docker", "compose", "--env-file", filepath.Join(s.state, ".env"), "--profile", "*",
				"logs", "--tail", "15").CombinedOutput()
			t.Logf("the containers logged at last:\n%s", logs)
		}
		if out, err := s.command(ctx, "make", "down").CombinedOutput(); err != nil {
			t.Errorf("make down: %v\n%s", err, out)
		}
	}
	// The next build needs the cache only.
	_ = s.command(ctx, "docker", "image", "rm", "sluice:test", "sluice-minio:test").Run()
}

// population generates what `make up` loads. It returns what an export of everything has to contain, and the ids of all
// resources.
func (s *system) population() (truth map[string]expect.Fingerprint, ids map[string]bool) {
	s.t.Helper()
	dir := filepath.Join(s.work, "population")
	_, err := synth.Generate(s.t.Context(), synth.Config{Patients: patients, Seed: 1, Dir: dir})
	check.Must(s.t, err)
	people := expect.Read(s.t, dir)
	check.Must(s.t, os.RemoveAll(dir))
	ids = map[string]bool{}
	for _, r := range people.ByKey {
		ids[r.ID] = true
	}
	return expect.Fingerprints(people.Export(people.Members("all"))), ids
}

// quickstart runs the commands that `make up` printed, as they are, in a folder with bin/sluice.
func (s *system) quickstart(up string, truth map[string]expect.Fingerprint) {
	s.t.Helper()
	s.run("go", "build", "-o", filepath.Join(s.work, "bin")+"/", "./services/sluice")
	commands := strings.Join(regexp.MustCompile(`(?m)^  .*\n`).FindAllString(up[strings.Index(up, "\nExport all")+1:], -1), "")
	if !strings.Contains(commands, "sluice export") || !strings.Contains(commands, "sluice verify") {
		s.t.Fatalf("no commands in what make up printed:\n%s", up)
	}
	cmd := s.command(s.t.Context(), "bash", "-xeuo", "pipefail", "-c", commands)
	cmd.Dir = s.work
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("the printed commands: %v\n%s", err, out)
	}
	s.step("they printed:\n%s", out)
	dir := filepath.Join(s.state, "export")
	s.same(dir, truth)
	check.Must(s.t, os.RemoveAll(dir))
}

// faults exports while containers fail, and returns the failed attempts of units that this costs.
func (s *system) faults() (lost map[export.UnitID]int) {
	s.t.Helper()
	s.throttle(cpu)
	s.busy()
	s.during("workers are scaled from 1 to 4", func() {
		s.scale(4)
		s.throttle(cpu)
	})
	s.eventually(time.Minute, text("all four workers run units"), func() bool {
		s.busy()
		return len(s.held()) == 4
	})
	s.targets(map[string]int{"api": 1, "auth": 1, "scheduler": 1, "worker": 4})

	s.during("a worker is killed", func() {
		units, _ := s.hit(func(victim string) { s.run("docker", "kill", victim) }, func(victim string) {
			s.run("docker", "start", victim)
			s.limit(victim, cpu)
		})
		s.elsewhere(units)
		s.scale(4)
		s.throttle(cpu)
	})
	if lost = s.attempts(); len(lost) == 0 {
		s.t.Error("a kill has cost no attempt: it hit nothing")
	}
	s.during("a worker is paused, and continues when others have its units", func() {
		units, mend := s.hit(func(victim string) {
			s.limit(victim, 0) // a process that waits for its share of the processor cannot be frozen
			s.run("docker", "pause", victim)
		}, func(victim string) {
			s.run("docker", "unpause", victim)
			s.limit(victim, cpu)
		})
		resume := time.After(outage)
		s.elsewhere(units)
		<-resume
		mend()
	})
	s.noAttempt("a pause", lost)
	for _, store := range []string{"redis", "postgres"} {
		s.during(store+" is restarted", func() {
			s.run("docker", "restart", s.containers(store)[0].ID)
			s.allWell()
		})
		s.noAttempt("a restart of "+store, lost)
	}
	s.during("a worker is cut off", func() {
		network := s.networkOf(s.containers("worker")[0])
		units, mend := s.hit(func(victim string) { s.run("docker", "network", "disconnect", network, victim) },
			func(victim string) { s.run("docker", "network", "connect", "--alias", "worker", network, victim) })
		resume := time.After(outage)
		s.elsewhere(units)
		<-resume
		mend()
	})
	s.noAttempt("a cut", lost)
	s.logs = s.compose("--profile", "*", "logs", "--no-color") // of workers, too, that are removed now
	s.during("workers are scaled from 4 to 1", func() { s.scale(1) })
	causes := map[export.Cause]int{}
	for _, u := range s.units() {
		if u.Cause != "" {
			causes[u.Cause]++
		}
	}
	s.step("units that ran more than once, by the last cause: %v", causes)
	if causes[export.CauseLost] == 0 || causes[export.CauseDraining] == 0 {
		s.t.Errorf("units were lost or handed back: %v; want both", causes)
	}
	return lost
}

// noAttempt waits until all containers are healthy and the failed attempts of units are those of before: a worker that was
// taken for lost gives the attempt back when it continues.
func (s *system) noAttempt(what string, before map[export.UnitID]int) {
	s.t.Helper()
	s.allWell()
	s.eventually(time.Minute, func() string {
		return fmt.Sprintf("%s costs no attempt; failed attempts before: %v, after: %v", what, before, s.attempts())
	}, func() bool { return maps.Equal(s.attempts(), before) })
}

// during runs a fault in the middle of exports: jobs that are live before it are live after it, and units end after it.
func (s *system) during(what string, fault func()) {
	s.t.Helper()
	s.busy()
	s.eventually(time.Minute, text("units run"), func() bool { return len(s.held()) > 0 })
	before, _ := s.progress()
	s.step("%s; %s", what, before)
	fault()
	after, _ := s.progress()
	if !slices.ContainsFunc(before.live, func(job export.JobID) bool { return slices.Contains(after.live, job) }) {
		s.t.Errorf("%s: no export was in progress before and after it", what)
	}
	s.step("%s: done; %s", what, after)
	s.eventually(3*time.Minute, text("a unit ends after the fault"), func() bool {
		now, err := s.progress()
		return err == nil && now.ended > after.ended
	})
}

// progress is the state of all jobs.
type progress struct {
	live  []export.JobID
	text  []string
	ended int // units that are done
}

func (p progress) String() string { return "jobs at work: " + strings.Join(p.text, ", ") }

func (s *system) progress() (p progress, err error) {
	s.t.Helper()
	for _, r := range s.exports {
		detail, err := s.operator().Inspect(s.t.Context(), r.job)
		if err != nil {
			return p, err
		}
		units := 0
		for _, unit := range detail.Units {
			if !unit.Open() {
				units++
			}
		}
		p.ended += units
		if detail.State.Live() {
			p.live = append(p.live, r.job)
			p.text = append(p.text, fmt.Sprintf("%s %d%%, %d of %d units", r.job[:6], detail.Percent, units, len(detail.Units)))
		}
	}
	return p, nil
}

// busy starts exports until two are far from their end, or as many run as a client may have.
func (s *system) busy() {
	s.t.Helper()
	for {
		early, live := 0, 0
		for _, r := range s.exports {
			detail, err := s.operator().Inspect(s.t.Context(), r.job)
			check.Must(s.t, err)
			if detail.State.Live() {
				live++
				if detail.Percent < 50 {
					early++
				}
			}
		}
		if early >= 2 || live == jobLimit {
			return
		}
		s.export()
	}
}

// held returns the export units that each worker runs, by host name.
func (s *system) held() map[string][]ops.RunningUnit {
	s.t.Helper()
	workers, err := s.operator().Workers(s.t.Context())
	if err != nil {
		return nil // Redis starts
	}
	held := map[string][]ops.RunningUnit{}
	for _, w := range workers {
		for _, unit := range w.Units {
			if unit.Unit != export.PlanUnit && time.Since(unit.Since) < 15*time.Minute {
				held[w.Host] = append(held[w.Host], unit)
			}
		}
	}
	return held
}

// hit does harm to a worker with units in the middle, and returns these and what repairs it. The list of running units is
// some seconds old, so it tries again if all units of the worker have just ended.
func (s *system) hit(harm, repair func(victim string)) (units []ops.RunningUnit, mend func()) {
	s.t.Helper()
	for {
		var victim container
		s.eventually(time.Minute, text("a worker runs a unit"), func() bool {
			s.busy()
			held := s.held()
			for _, c := range s.containers("worker") {
				if c.State.Status == "running" && len(held[c.Config.Hostname]) > 0 {
					victim = c
					return true
				}
			}
			return false
		})
		harm(victim.ID)
		for _, running := range s.held()[victim.Config.Hostname] {
			if u := s.unit(running); u.State == ops.UnitRunning {
				running.Fence = u.Fence // of the claim; the list has that of the task
				units = append(units, running)
			}
		}
		mend = func() { repair(victim.ID) }
		if len(units) > 0 {
			return units, mend
		}
		mend()
	}
}

// elsewhere waits until other workers have taken the units over, and no lost one is left.
func (s *system) elsewhere(units []ops.RunningUnit) {
	s.t.Helper()
	for _, running := range units {
		s.eventually(3*time.Minute, text(fmt.Sprintf("unit %s runs elsewhere", running.Unit)), func() bool {
			u := s.unit(running)
			return u.Fence > running.Fence && (u.State == ops.UnitRunning || !u.Open())
		})
	}
	s.eventually(time.Minute, text("every running unit has a heartbeat"), func() bool {
		return !slices.ContainsFunc(s.units(), func(u ops.Unit) bool {
			return u.State == ops.UnitRunning && u.Silent.Duration > 10*time.Second
		})
	})
	s.step("%d units of it run elsewhere", len(units))
}

func (s *system) unit(of ops.RunningUnit) ops.Unit {
	s.t.Helper()
	detail, err := s.operator().Inspect(s.t.Context(), of.Job)
	check.Must(s.t, err)
	at := slices.IndexFunc(detail.Units, func(u ops.Unit) bool { return u.ID == of.Unit })
	if at < 0 {
		s.t.Fatalf("job %s has no unit %s", of.Job, of.Unit)
	}
	return detail.Units[at]
}

// units returns the units of all exports, by the beginning of the job's id and their own.
func (s *system) units() []ops.Unit {
	s.t.Helper()
	var units []ops.Unit
	for _, r := range s.exports {
		detail, err := s.operator().Inspect(s.t.Context(), r.job)
		check.Must(s.t, err)
		for _, u := range detail.Units {
			u.ID = export.UnitID(r.job[:6]) + "/" + u.ID
			units = append(units, u)
		}
	}
	return units
}

// networkOf returns the only network of a container.
func (s *system) networkOf(c container) string {
	s.t.Helper()
	names := slices.Collect(maps.Keys(c.NetworkSettings.Networks))
	if len(names) != 1 {
		s.t.Fatalf("%s has the networks %v", c.Name, names)
	}
	return names[0]
}

// attempts returns the failed attempts of all units that have any.
func (s *system) attempts() map[export.UnitID]int {
	s.t.Helper()
	failed := map[export.UnitID]int{}
	for _, u := range s.units() {
		if u.Attempts > 0 {
			failed[u.ID] = u.Attempts
		}
	}
	return failed
}

// nothingOrphaned deletes all jobs, and their objects with them.
func (s *system) nothingOrphaned() {
	s.t.Helper()
	page, err := s.operator().List(s.t.Context(), ops.Filter{Limit: 1000})
	check.Must(s.t, err)
	known := map[export.JobID]bool{}
	for _, job := range page.Jobs {
		known[job.ID] = true
	}
	files, uploads := s.stored()
	for job, n := range files {
		if !known[job] {
			s.t.Errorf("%d objects of job %q, which Redis does not have", n, job)
		}
	}
	for job, n := range uploads {
		if !known[job] {
			s.t.Errorf("%d unfinished uploads of job %q, which Redis does not have", n, job)
		}
	}
	s.step("%d jobs; jobs with objects: %d, with unfinished uploads of lost workers: %d", len(known), len(files), len(uploads))
	for _, job := range page.Jobs {
		cmd := s.command(s.t.Context(), filepath.Join(s.work, "bin", "sluice"),
			append([]string{"cancel", s.base() + "/exports/" + string(job.ID), "--base", s.base()}, s.client()...)...)
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+filepath.Join(s.state, "ca.pem"))
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Errorf("sluice cancel: %v\n%s", err, out)
		}
	}
	s.eventually(2*time.Minute, func() string {
		return fmt.Sprintf("the bucket is empty; objects %v, uploads %v", files, uploads)
	}, func() bool {
		files, uploads = s.stored()
		return len(files) == 0 && len(uploads) == 0
	})
	s.step("all jobs are deleted and the bucket is empty")
}

var (
	word    = regexp.MustCompile(`[A-Za-z0-9.-]+`)
	crashed = regexp.MustCompile(`(?m)^.*(panic: |fatal error: |goroutine \d+ \[).*$`)
)

// readLogs fails if a service has panicked, or has logged an id of the population.
func (s *system) readLogs(ids map[string]bool) {
	s.t.Helper()
	logs := s.logs + s.compose("--profile", "*", "logs", "--no-color")
	if found := crashed.FindString(logs); found != "" {
		s.t.Errorf("a service has crashed: %s", found)
	}
	lines := 0
	for line := range strings.Lines(logs) {
		lines++
		for _, id := range word.FindAllString(line, -1) {
			if ids[id] {
				s.t.Fatalf("the id %s of a resource was logged: %s", id, line)
			}
		}
	}
	s.step("%d lines of logs have no panic and none of %d ids", lines, len(ids))
}

// memory prints the peaks, and fails if one reached the limit.
func (s *system) memory() {
	s.t.Helper()
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "service\tcontainers\tpeak MiB\tlimit MiB\tpeak/limit\twith page cache MiB\tsamples\t")
	s.peaks.mu.Lock()
	defer s.peaks.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(s.peaks.byService)) {
		m := s.peaks.byService[service]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d%%\t%d\t%d\t\n", service, len(m.containers), m.used>>20, m.limit>>20,
			100*m.used/m.limit, m.max>>20, m.samples)
		if m.used >= m.limit {
			s.t.Errorf("%s has reached its memory limit", service)
		}
	}
	check.Must(s.t, w.Flush())
	s.step("memory (peak: anonymous and shared memory, sampled; page cache is in the kernel's own maximum):\n%s", &table)
	for _, c := range s.containers() {
		if c.State.OOMKilled || c.RestartCount > 0 {
			s.t.Errorf("%s: out of memory %t, %d restarts", c.Name, c.State.OOMKilled, c.RestartCount)
		}
	}
}

// observability starts the profile: Prometheus, and Grafana if the engine has its image. Its front end is in no Go module,
// so the image cannot be made.
func (s *system) observability() {
	s.t.Helper()
	s.compose("up", "--detach", "--wait", "--no-recreate", "prometheus")
	rules, err := os.ReadFile(filepath.Join(s.root, "k8s", "monitoring", "alerts.yaml"))
	check.Must(s.t, err)
	want := bytes.Count(rules, []byte("- alert: "))
	var loaded struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Health string }
			}
		}
	}
	count := 0
	what := func() string { return fmt.Sprintf("%d rules are evaluated; %d are", want, count) }
	s.eventually(time.Minute, what, func() bool {
		count = 0
		check.Must(s.t, s.query("PROMETHEUS", "/api/v1/rules?type=alert", &loaded))
		for _, group := range loaded.Data.Groups {
			for _, rule := range group.Rules {
				if rule.Health == "ok" {
					count++
				}
			}
		}
		return count == want && want > 0
	})
	s.step("Prometheus is healthy and evaluates %d alert rules", count)

	images := s.compose("--profile", "observability", "config", "--images")
	image := regexp.MustCompile(`grafana/grafana:\S+`).FindString(images)
	if s.command(s.t.Context(), "docker", "image", "inspect", image).Run() != nil {
		s.step("Grafana is not started: the engine has no image %s", image)
		return
	}
	s.compose("up", "--detach", "--wait", "--no-recreate", "grafana")
	var dashboards []struct{ Title string }
	check.Must(s.t, s.query("GRAFANA", "/api/search?type=dash-db", &dashboards))
	if len(dashboards) != 1 {
		s.t.Errorf("Grafana has the dashboards %v, want one", dashboards)
	}
	s.step("Grafana is healthy and has the dashboard")
}

// targets waits until Prometheus reaches so many targets of each service, and no others.
func (s *system) targets(want map[string]int) {
	s.t.Helper()
	var up map[string]int
	s.eventually(2*time.Minute, func() string { return fmt.Sprintf("targets %v are up; up are %v", want, up) }, func() bool {
		var active struct {
			Data struct {
				ActiveTargets []struct {
					Labels map[string]string
					Health string
				}
			}
		}
		if s.query("PROMETHEUS", "/api/v1/targets?state=active", &active) != nil {
			return false
		}
		up = map[string]int{}
		for _, target := range active.Data.ActiveTargets {
			if target.Health == "up" {
				up[target.Labels["service"]]++
			} else {
				up[target.Labels["service"]+" "+target.Health]++
			}
		}
		return maps.Equal(up, want)
	})
	s.step("targets of Prometheus that are up: %v", up)
}

// query reads JSON from a published port.
func (s *system) query(port, path string, answer any) error {
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet,
		fmt.Sprintf("http://127.0.0.1:%d%s", s.ports[port], path), nil)
	if err != nil {
		return err
	}
	if port == "GRAFANA" {
		request.SetBasicAuth("admin", s.secret("grafana_password"))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(answer)
}

// leftovers names what the engine and the file system still have of the project.
func (s *system) leftovers() string {
	s.t.Helper()
	label := "label=com.docker.compose.project=" + project
	left := s.run("docker", "ps", "--all", "--quiet", "--filter", label) +
		s.run("docker", "volume", "ls", "--quiet", "--filter", label) +
		s.run("docker", "network", "ls", "--quiet", "--filter", label)
	if _, err := os.Stat(s.state); err == nil {
		left += s.state
	}
	return left
}
