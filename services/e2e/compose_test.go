package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// composed is docker-compose.yml outside of containers: the programs of this machine with the arguments, settings and
// files that the file gives them. tools/composecheck says what those are and which paths, hosts and ports stand for which.
type composed struct {
	t     *testing.T
	check string // the program composecheck
	root  string // of the repository
	dir   string // where everything is
	state string // stands for .compose
	path  string // PATH of scripts/compose.sh, on which docker is composecheck
	ports map[string]int

	services  []composeService
	processes map[string]*process
	checks    map[string]composeProcess // health checks by world and service
}

type composeService struct {
	Name      string            `json:"name"`
	DependsOn map[string]string `json:"depends_on"`
	Ports     []int             `json:"ports"`
	Ends      bool              `json:"ends"`
	Health    bool              `json:"health"`
	Grace     string            `json:"grace"`
}

// composeProcess is how a command of the file runs here.
type composeProcess struct {
	Args []string          `json:"args"`
	Env  []string          `json:"env"`
	Dirs map[string]string `json:"dirs"`
}

func newComposed(t *testing.T) *composed {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	// Not t.TempDir, whose parent only root can enter when root runs the tests, and PostgreSQL does not run as root.
	dir, err := os.MkdirTemp("", "sluice-compose-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	c := &composed{
		t: t, root: root, dir: dir, state: filepath.Join(dir, "state"), check: filepath.Join(dir, "composecheck"),
		ports: map[string]int{}, processes: map[string]*process{}, checks: map[string]composeProcess{},
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", c.check, ".")
	build.Dir, build.Env = filepath.Join(root, "tools", "composecheck"), append(os.Environ(), "GOWORK=off")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build composecheck: %v\n%s", err, said)
	}
	bin := filepath.Join(dir, "bin")
	must(t, os.Mkdir(bin, 0o755))
	must(t, os.Symlink(os.Getenv("SLUICE_TEST_MINIO_BIN"), filepath.Join(bin, "minio")))
	must(t, os.WriteFile(filepath.Join(bin, "docker"),
		fmt.Appendf(nil, "#!/bin/sh\nexec '%s' docker '%s' \"$@\"\n", c.check, c.world()), 0o755))
	c.path = bin + ":" + os.Getenv("PATH")

	// The settings are those of .env.example, on ports that are free.
	settings, err := os.ReadFile(filepath.Join(root, ".env.example"))
	must(t, err)
	published := map[string]int{}
	settings = regexp.MustCompile(`(?m)^([A-Z]+)_PORT=\d+$`).ReplaceAllFunc(settings, func(line []byte) []byte {
		name, _, _ := strings.Cut(string(line), "=")
		published[name] = testenv.FreePort(t)
		return fmt.Appendf(nil, "%s=%d", name, published[name])
	})
	must(t, os.Mkdir(c.state, 0o700))
	must(t, os.WriteFile(filepath.Join(c.state, ".env"), settings, 0o600))
	c.write("world.json", bin)
	c.ask(&c.services, "services", c.world())
	for _, s := range c.services {
		for _, port := range s.Ports {
			c.ports[fmt.Sprintf("%s:%d", s.Name, port)] = testenv.FreePort(t)
		}
	}
	// What is published is reached under the port that clients are told.
	c.ports["api:8080"], c.ports["auth:8081"], c.ports["scheduler:9090"] =
		published["API_PORT"], published["AUTH_PORT"], published["SCHEDULER_PORT"]
	c.write("world.json", bin)
	// A second worker differs in nothing but its address.
	c.ports["worker:9090"] = testenv.FreePort(t)
	c.write("second.json", bin)
	return c
}

func (c *composed) world() string { return filepath.Join(c.dir, "world.json") }

func (c *composed) write(file, bin string) {
	c.t.Helper()
	text, err := json.Marshal(map[string]any{
		"root": c.root, "state": c.state, "dir": c.dir, "ports": c.ports,
		"path": []string{bin, binaries, os.Getenv("SLUICE_TEST_POSTGRES_BIN")},
	})
	must(c.t, err)
	must(c.t, os.WriteFile(filepath.Join(c.dir, file), text, 0o600))
}

// ask runs composecheck and reads what it prints.
func (c *composed) ask(into any, args ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.check, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("composecheck %v: %v\n%s", args, err, stderr.String())
	}
	must(c.t, json.Unmarshal(out, into))
}

// script starts scripts/compose.sh. What it says is complete when the channel gives its error.
func (c *composed) script(ctx context.Context, args ...string) (said *bytes.Buffer, ended chan error) {
	c.t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(c.root, "scripts", "compose.sh"), args...)
	cmd.Env = append(os.Environ(), "PATH="+c.path, "SLUICE_COMPOSE_STATE="+c.state, "PATIENTS="+strconv.Itoa(composePatients))
	said, ended = &bytes.Buffer{}, make(chan error, 1)
	cmd.Stdout, cmd.Stderr = said, said
	must(c.t, cmd.Start())
	go func() { ended <- cmd.Wait() }()
	return said, ended
}

// asked waits until the script asks docker for something.
func (c *composed) asked(what string, said *bytes.Buffer, ended chan error) {
	c.t.Helper()
	eventually(c.t, time.Minute, "compose.sh asks for "+what, func() bool {
		select {
		case err := <-ended:
			c.t.Fatalf("compose.sh ended: %v\n%s", err, said)
		default:
		}
		_, err := os.Stat(filepath.Join(c.dir, what+".asked"))
		return err == nil
	})
}

// done tells the script that what it asked for is done, and waits for its end.
func (c *composed) done(what string, said *bytes.Buffer, ended chan error) string {
	c.t.Helper()
	must(c.t, os.WriteFile(filepath.Join(c.dir, what+".done"), nil, 0o600))
	select {
	case err := <-ended:
		if err != nil {
			c.t.Fatalf("compose.sh: %v\n%s", err, said)
		}
	case <-time.After(2 * time.Minute):
		c.t.Fatal("compose.sh does not end")
	}
	return said.String()
}

// healthy runs a service's health check once.
func (c *composed) healthy(world, name string) (bool, string) {
	c.t.Helper()
	check, known := c.checks[world+name]
	if !known {
		c.ask(&check, "health", world, name)
		c.checks[world+name] = check
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 6*time.Second) // the file's timeout
	defer cancel()
	cmd := exec.CommandContext(ctx, check.Args[0], check.Args[1:]...)
	cmd.Env = check.Env
	said, err := cmd.CombinedOutput()
	return err == nil, string(said)
}

// awaitHealthy waits as `docker compose up --wait` does.
func (c *composed) awaitHealthy(world, name string) {
	c.t.Helper()
	last := ""
	c.t.Cleanup(func() {
		if c.t.Failed() && last != "" {
			c.t.Logf("%s: its health check said last: %s", name, last)
		}
	})
	eventually(c.t, time.Minute, name+" is healthy", func() bool {
		well, said := c.healthy(world, name)
		last = said
		if well {
			last = ""
		}
		return well
	})
}

// start starts a service as the file says. What its image would add is added here.
func (c *composed) start(world, name string) *process {
	c.t.Helper()
	var how composeProcess
	c.ask(&how, "outside", world, name)
	if name == "postgres" {
		c.initPostgres(how)
		how.Args = append(how.Args, "-k", "") // the image's folder for sockets is not ours to write to
	}
	cmd := exec.Command(how.Args[0], how.Args[1:]...)
	cmd.Env, cmd.Dir = how.Env, c.dir
	if name == "postgres" {
		cmd.SysProcAttr = testenv.PostgresAccount(c.t)
	}
	out, err := os.OpenFile(filepath.Join(c.dir, name+".stdout"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(c.t, err)
	cmd.Stdout = out
	p := launch(c.t, name, cmd)
	must(c.t, out.Close())
	return p
}

// initPostgres does what the image's entry point does with an empty folder, by the same settings.
func (c *composed) initPostgres(how composeProcess) {
	c.t.Helper()
	settings := map[string]string{}
	for _, entry := range how.Env {
		name, value, _ := strings.Cut(entry, "=")
		settings[name] = value
	}
	data := settings["PGDATA"]
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		return
	}
	account := testenv.PostgresAccount(c.t)
	password, err := os.ReadFile(settings["POSTGRES_PASSWORD_FILE"])
	must(c.t, err)
	file := filepath.Join(c.dir, "postgres.password")
	must(c.t, os.WriteFile(file, password, 0o600))
	must(c.t, os.Chmod(data, 0o700))
	if who := account.Credential; who != nil {
		must(c.t, os.Chown(data, int(who.Uid), int(who.Gid)))
		must(c.t, os.Chown(file, int(who.Uid), int(who.Gid)))
	}
	programs := os.Getenv("SLUICE_TEST_POSTGRES_BIN")
	args := append([]string{"--no-sync", "-D", data, "-U", settings["POSTGRES_USER"], "--pwfile", file},
		strings.Fields(settings["POSTGRES_INITDB_ARGS"])...)
	initdb := exec.CommandContext(c.t.Context(), filepath.Join(programs, "initdb"), args...)
	initdb.SysProcAttr, initdb.Dir = account, c.dir
	if said, err := initdb.CombinedOutput(); err != nil {
		c.t.Fatalf("initdb: %v\n%s", err, said)
	}
	single := exec.CommandContext(c.t.Context(), filepath.Join(programs, "postgres"), "--single", "-D", data, "postgres")
	single.SysProcAttr, single.Dir = account, c.dir
	single.Stdin = strings.NewReader("CREATE DATABASE " + settings["POSTGRES_DB"] + "\n")
	if said, err := single.CombinedOutput(); err != nil {
		c.t.Fatalf("create the database: %v\n%s", err, said)
	}
	must(c.t, os.Remove(file))
}

// up starts every service in the order of the file, each when those that it depends on are healthy or have ended well.
func (c *composed) up() {
	c.t.Helper()
	healthy := map[string]bool{}
	for _, s := range c.services {
		for on, condition := range s.DependsOn {
			switch condition {
			case "service_healthy":
				if !healthy[on] {
					c.awaitHealthy(c.world(), on)
					healthy[on] = true
				}
			case "service_completed_successfully":
				p := c.processes[on]
				select {
				case <-p.exited:
				case <-time.After(time.Minute):
					c.t.Fatalf("%s does not end", on)
				}
				if code := p.cmd.ProcessState.ExitCode(); code != 0 {
					c.t.Fatalf("%s ended with %d: %s", on, code, p.said())
				}
			default:
				c.t.Fatalf("%s waits for %s to be %s", s.Name, on, condition)
			}
		}
		if s.Health {
			if well, _ := c.healthy(c.world(), s.Name); well {
				c.t.Fatalf("%s is healthy before it runs: its health check asks somebody else", s.Name)
			}
		}
		c.processes[s.Name] = c.start(c.world(), s.Name)
	}
	second := filepath.Join(c.dir, "second.json")
	c.processes["second worker"] = c.start(second, "worker") // --scale worker=2
	for _, s := range c.services {
		if s.Health && !healthy[s.Name] {
			c.awaitHealthy(c.world(), s.Name)
		}
	}
	c.awaitHealthy(second, "worker")
}

// stop ends a service as docker does, and wants it to end well and within the file's grace.
func (c *composed) stop(name string, grace string, sig syscall.Signal) {
	c.t.Helper()
	most, err := time.ParseDuration(grace)
	must(c.t, err)
	p := c.processes[name]
	p.signal(sig)
	select {
	case <-p.exited:
	case <-time.After(most):
		c.t.Errorf("%s would be killed: it has not ended in %s", name, grace)
		p.kill()
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Errorf("%s ended with %d:\n%s", name, code, p.trouble())
	}
}

// grace is what the file gives a service to stop in.
func (c *composed) grace(name string) string {
	c.t.Helper()
	for _, s := range c.services {
		if s.Name == name {
			return s.Grace
		}
	}
	c.t.Fatalf("there is no service %s", name)
	return ""
}

// composePatients is how many the sample data has.
const composePatients = 20

// The whole of `make up`, `make down` and what is between, by docker-compose.yml and scripts/compose.sh, on real servers
// and without containers. That the file is well-formed and fits the images is for tools/composecheck.
func TestTheComposeFileOutsideOfContainers(t *testing.T) {
	c := newComposed(t)
	said, ended := c.script(t.Context(), "up")
	c.asked("up", said, ended)
	c.up()
	told := c.done("up", said, ended)

	// The printed quickstart, as somebody pastes it.
	home := filepath.Join(c.dir, "home")
	must(t, os.MkdirAll(filepath.Join(home, "bin"), 0o755))
	must(t, os.Symlink(filepath.Join(binaries, "sluice"), filepath.Join(home, "bin", "sluice")))
	_, commands, found := strings.Cut(told, "makes bin/sluice):\n")
	commands, _, more := strings.Cut(commands, "The operator's page:")
	if !found || !more || strings.Count(commands, "bin/sluice") != 2 {
		t.Fatalf("there is no quickstart in what make up says:\n%s", told)
	}
	export := func() {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(c.state, "export")))
		paste := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", commands)
		paste.Dir = home
		if out, err := paste.CombinedOutput(); err != nil {
			t.Fatalf("the quickstart: %v\n%s\n%s", err, commands, out)
		}
		if patients := countLines(t, filepath.Join(c.state, "export", "Patient*.ndjson")); patients != composePatients {
			t.Errorf("%d patients are exported, want %d", patients, composePatients)
		}
		if some, all := countLines(t, filepath.Join(c.state, "export", "Observation*.ndjson")),
			countLines(t, filepath.Join(c.dir, "volumes", "*sample", "*", "Observation*.ndjson")); some != all || all == 0 {
			t.Errorf("%d observations are exported, want %d", some, all)
		}
	}
	export()
	page, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/operator/", c.ports["scheduler:9090"]))
	must(t, err)
	must(t, page.Body.Close())
	if page.StatusCode != http.StatusOK {
		t.Errorf("the operator's page: %s", page.Status)
	}

	// Jobs and clients survive a restart of Redis, whose AOF is on.
	c.stop("redis", "30s", syscall.SIGTERM)
	if well, _ := c.healthy(c.world(), "redis"); well {
		t.Error("Redis is healthy when it does not run")
	}
	if well, _ := c.healthy(c.world(), "api"); well {
		t.Error("the API is healthy without Redis")
	}
	c.processes["redis"] = c.start(c.world(), "redis")
	for _, s := range c.services {
		if s.Health {
			c.awaitHealthy(c.world(), s.Name)
		}
	}

	// Again: nothing is made anew, and everything works.
	before := stateOf(t, c.state)
	said, ended = c.script(t.Context(), "up")
	c.asked("up", said, ended)
	c.done("up", said, ended)
	if after := stateOf(t, c.state); after != before {
		t.Errorf("make up has changed what was there:\n%s\n%s", before, after)
	}
	export()

	// Everything stops in order, within the grace that it gets, the last one started first.
	c.stop("second worker", c.grace("worker"), syscall.SIGTERM)
	for n := range c.services {
		s := c.services[len(c.services)-1-n]
		switch {
		case s.Ends:
		case s.Name == "postgres":
			c.stop(s.Name, s.Grace, syscall.SIGINT) // its stop_signal
		default:
			c.stop(s.Name, s.Grace, syscall.SIGTERM)
		}
	}
	// What standard output got is the audit log, whole, under the key of the file.
	for _, name := range []string{"api", "auth", "scheduler"} {
		sluice(t, 0, "admin", "audit", "verify", "--key-file", filepath.Join(c.state, "audit_key"), filepath.Join(c.dir, name+".stdout"))
	}
	// Nothing that is secret was said.
	for _, secret := range []string{"redis_password", "postgres_password", "s3_secret_key", "auth_key", "audit_key"} {
		text, err := os.ReadFile(filepath.Join(c.state, secret))
		must(t, err)
		for name, p := range c.processes {
			if strings.Contains(p.said(), string(text)) || strings.Contains(told, string(text)) {
				t.Errorf("%s or the script has told %s", name, secret)
			}
		}
	}

	said, ended = c.script(t.Context(), "down")
	c.asked("down", said, ended)
	c.done("down", said, ended)
	if _, err := os.Stat(c.state); err == nil {
		t.Error("make down leaves secrets")
	}
}

// countLines counts those of all files that match.
func countLines(t *testing.T, glob string) int {
	t.Helper()
	files, err := filepath.Glob(glob)
	must(t, err)
	lines := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		must(t, err)
		lines += bytes.Count(content, []byte("\n"))
	}
	return lines
}

// stateOf is the mode and the content of every file in a folder.
func stateOf(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(file string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(file)
		fmt.Fprintf(&all, "%s %s %q\n", file, info.Mode(), content)
		return err
	}))
	return all.String()
}
