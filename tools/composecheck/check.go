package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

const (
	profilesVariable = "COMPOSE_PROFILES" // docker compose reads it itself
	everyProfile     = "*"
	ourImage         = "sluice:local"
	ourUser          = "65532:65532"
	privatePort      = 9090
	// What a service of ours may take to stop: the listeners' 20 s (pkg/platform), or its drain and then 25 s to hand back
	// (pkg/queue); and some to close what is open.
	answers  = 20 * time.Second
	handBack = 25 * time.Second
	margin   = 5 * time.Second
)

// writable are the services whose root file system may be written to, with the reason.
var writable = map[string]string{"keycloak": "builds itself anew when it starts"}

// tree is what is compared: files of a repository, some of which a test has changed.
type tree struct {
	root       string
	compose    []byte
	settings   map[string]string
	dockerfile []byte
	ignore     []byte

	project *types.Project // of all profiles
	image   *image
}

func readTree(root string) (*tree, error) {
	t := &tree{root: root}
	var err error
	for file, into := range map[string]*[]byte{
		composeFile: &t.compose, dockerfileName: &t.dockerfile, ".dockerignore": &t.ignore,
	} {
		if *into, err = os.ReadFile(filepath.Join(root, file)); err != nil {
			return nil, err
		}
	}
	t.settings, err = readSettings(filepath.Join(root, settings))
	return t, err
}

// check runs all checks on a repository, with our services built in bin.
func check(ctx context.Context, root, bin string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	t, err := readTree(root)
	if err != nil {
		return err
	}
	problems := t.problems(ctx)
	if len(problems) == 0 { // it makes no sense to run what does not fit together
		problems, err = t.accepted(ctx, bin)
	}
	for _, problem := range problems {
		fmt.Println(problem)
	}
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%d problems", len(problems))
	}
	return err
}

// problems are all that can be said without running anything.
func (t *tree) problems(ctx context.Context) []string {
	var err error
	if t.project, err = load(ctx, t.root, t.compose, t.settings, everyProfile); err != nil {
		return []string{fmt.Sprintf("%s cannot be read: %v", composeFile, err)}
	}
	if t.image, err = readImage(t.dockerfile); err != nil {
		return []string{fmt.Sprintf("%s cannot be read: %v", dockerfileName, err)}
	}
	problems := t.lintDockerfile(ctx)
	problems = append(problems, t.variables(ctx)...)
	for _, name := range slices.Sorted(maps.Keys(t.project.Services)) {
		s := t.project.Services[name]
		for _, checks := range []func(types.ServiceConfig) []string{
			t.hardened, t.pinned, t.healthy, t.stops, t.depends, t.reaches, t.mounted, t.published, t.ours,
		} {
			for _, problem := range checks(s) {
				problems = append(problems, name+": "+problem)
			}
		}
	}
	return slices.Concat(problems, t.unused(), t.scraped())
}

// variables compares those that the file uses with the settings that are documented: a default in the file would be a
// setting that nobody knows of.
func (t *tree) variables(ctx context.Context) (problems []string) {
	model, err := loader.LoadModelWithContext(ctx, types.ConfigDetails{
		WorkingDir:  t.root,
		ConfigFiles: []types.ConfigFile{{Filename: composeFile, Content: t.compose}},
	}, func(o *loader.Options) {
		o.SkipInterpolation, o.SkipValidation, o.SkipResolveEnvironment, o.SkipConsistencyCheck = true, true, true, true
		o.Profiles = []string{everyProfile}
		o.SetProjectName("sluice", true)
	})
	if err != nil {
		return []string{"its variables cannot be read: " + err.Error()}
	}
	used := template.ExtractVariables(model, nil)
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if _, known := t.settings[name]; !known {
			problems = append(problems, fmt.Sprintf("variable %s is not in %s", name, settings))
		}
		if used[name].DefaultValue != "" {
			problems = append(problems, fmt.Sprintf("variable %s has a default in the file: it belongs into %s", name, settings))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.settings)) {
		if _, is := used[name]; !is && name != profilesVariable {
			problems = append(problems, fmt.Sprintf("%s has %s, which nothing uses", settings, name))
		}
	}
	return problems
}

func (t *tree) hardened(s types.ServiceConfig) (problems []string) {
	if !s.ReadOnly && writable[s.Name] == "" {
		problems = append(problems, "its root file system may be written to")
	}
	if !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.CapAdd) > 0 {
		problems = append(problems, "it keeps capabilities")
	}
	if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
		problems = append(problems, "it may gain privileges")
	}
	if s.Privileged || s.NetworkMode != "" || s.Pid != "" || s.Ipc != "" || s.UserNSMode != "" || len(s.Devices) > 0 {
		problems = append(problems, "it has something of the host")
	}
	user, _, _ := strings.Cut(s.User, ":")
	if user == "" || strings.Trim(user, "0123456789") != "" || strings.Trim(user, "0") == "" {
		problems = append(problems, "it does not say by a number which account other than root it runs as")
	}
	if s.MemLimit == 0 || s.PidsLimit == 0 {
		problems = append(problems, "its memory or its processes have no limit")
	}
	for _, volume := range s.Volumes {
		if volume.Type == types.VolumeTypeBind {
			problems = append(problems, "it mounts a folder of the host")
		}
	}
	return problems
}

// versioned is a tag that names a release and not a line of them.
var versioned = regexp.MustCompile(`:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?(@sha256:[0-9a-f]{64})?$`)

func (t *tree) pinned(s types.ServiceConfig) []string {
	if s.Build == nil {
		if !versioned.MatchString(s.Image) {
			return []string{fmt.Sprintf("its image %q has no version", s.Image)}
		}
		return nil
	}
	var problems []string
	if !strings.HasSuffix(s.Image, ":local") {
		problems = append(problems, "what is built here is tagged local, so that nobody takes it for a release")
	}
	if filepath.Join(s.Build.Context, s.Build.Dockerfile) != filepath.Join(t.root, dockerfileName) {
		problems = append(problems, fmt.Sprintf("it is built by %s", s.Build.Dockerfile))
	}
	if _, is := t.image.stages[s.Build.Target]; !is {
		problems = append(problems, fmt.Sprintf("%s has no stage %q", dockerfileName, s.Build.Target))
	}
	return problems
}

func (t *tree) healthy(s types.ServiceConfig) []string {
	if ends(s) {
		if s.HealthCheck != nil {
			return []string{"it ends, so nobody will ask how it is"}
		}
		return nil
	}
	args, err := healthCommand(s)
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	if h := s.HealthCheck; h.Interval == nil || h.Timeout == nil || h.StartPeriod == nil || h.Retries == nil {
		problems = append(problems, "its health check leaves times to the engine's version")
	}
	// A server may ask itself at its own ports alone.
	for _, found := range regexp.MustCompile(`127\.0\.0\.1[:/](\d+)`).FindAllStringSubmatch(strings.Join(args, " "), -1) {
		port, _ := strconv.Atoi(found[1])
		if management := s.Name == "keycloak" && port == 9000; !management && !slices.Contains(ports(s), port) {
			problems = append(problems, fmt.Sprintf("its health check asks port %d, which it does not say it has", port))
		}
	}
	return problems
}

// stops compares the grace that a container gets with what the process in it may take.
func (t *tree) stops(s types.ServiceConfig) []string {
	if s.Image != ourImage || ends(s) {
		return nil
	}
	if s.StopGracePeriod == nil {
		return []string{"it has no stop_grace_period"}
	}
	need := answers
	for name, value := range s.Environment {
		if strings.HasSuffix(name, "_DRAIN") && value != nil {
			drain, err := time.ParseDuration(*value)
			if err != nil {
				return []string{name + ": " + err.Error()}
			}
			need = max(need, drain+handBack)
		}
	}
	if grace := time.Duration(*s.StopGracePeriod); grace < need+margin {
		return []string{fmt.Sprintf("it is killed after %s, want %s", grace, need+margin)}
	}
	return nil
}

// depends wants every start to wait for something that will happen.
func (t *tree) depends(s types.ServiceConfig) (problems []string) {
	for name, how := range s.DependsOn {
		on := t.project.Services[name]
		switch how.Condition {
		case types.ServiceConditionHealthy:
			if on.HealthCheck == nil {
				problems = append(problems, "it waits for the health of "+name+", which nobody asks")
			}
		case types.ServiceConditionCompletedSuccessfully:
			if !ends(on) {
				problems = append(problems, "it waits for the end of "+name+", which runs for ever")
			}
		default:
			problems = append(problems, fmt.Sprintf("it starts when %s has %s: want healthy or completed", name, how.Condition))
		}
		together := func(profile string) bool { return slices.Contains(on.Profiles, profile) }
		if len(on.Profiles) > 0 && !slices.ContainsFunc(s.Profiles, together) {
			problems = append(problems, "it waits for "+name+", whose profile may be off")
		}
	}
	return problems
}

// texts are all that a service is told: its command, its settings and its health check.
func texts(s types.ServiceConfig) []string {
	all := slices.Concat([]string(s.Entrypoint), []string(s.Command))
	for _, value := range s.Environment {
		if value != nil {
			all = append(all, *value)
		}
	}
	if s.HealthCheck != nil {
		all = append(all, s.HealthCheck.Test...)
	}
	return all
}

var hostAndPort = regexp.MustCompile(`(?:^|[/@\s"'=])([a-z][a-z0-9-]*):(\d{2,5})\b`)

// reaches compares each "service:port" that a service is told, also by the files that the repository mounts, with what
// that service has and with the networks of both.
func (t *tree) reaches(s types.ServiceConfig) (problems []string) {
	told := texts(s)
	for _, config := range s.Configs {
		if content, err := os.ReadFile(t.project.Configs[config.Source].File); err == nil { // mounted() finds what is missing
			told = append(told, string(content))
		}
	}
	for _, found := range hostAndPort.FindAllStringSubmatch(strings.Join(told, "\n"), -1) {
		host, text := found[1], found[2]
		if host == "localhost" {
			problems = append(problems, t.publishedAt(text)...)
			continue
		}
		on, is := t.project.Services[host]
		if !is {
			problems = append(problems, fmt.Sprintf("it is told of %s:%s, and there is no such service", host, text))
			continue
		}
		if port, _ := strconv.Atoi(text); !slices.Contains(ports(on), port) {
			problems = append(problems, fmt.Sprintf("it is told of %s:%s, and %s has no such port", host, text, host))
		}
		if !shareNetwork(s, on) {
			problems = append(problems, fmt.Sprintf("it is told of %s, which is in none of its networks", host))
		}
	}
	for name := range s.DependsOn {
		if !shareNetwork(s, t.project.Services[name]) {
			problems = append(problems, fmt.Sprintf("it depends on %s, which is in none of its networks", name))
		}
	}
	return problems
}

// publishedAt says what is wrong with a URL of this machine that somebody is given.
func (t *tree) publishedAt(port string) []string {
	for _, s := range t.project.Services {
		for _, published := range s.Ports {
			if published.Published == port {
				return nil
			}
		}
	}
	return []string{fmt.Sprintf("it is told of localhost:%s, and nothing is published there", port)}
}

func shareNetwork(a, b types.ServiceConfig) bool {
	for name := range a.Networks {
		if _, both := b.Networks[name]; both {
			return true
		}
	}
	return false
}

var secretPath = regexp.MustCompile(`/run/secrets/[A-Za-z0-9_]+`)

// mounted compares the files that a service is told of with those that it has.
func (t *tree) mounted(s types.ServiceConfig) (problems []string) {
	all, err := mounts(t.project, s)
	if err != nil {
		return []string{err.Error()}
	}
	told := strings.Join(texts(s), "\n")
	has := map[string]bool{}
	for _, m := range all {
		has[m.target] = true
		switch m.kind {
		case "secret":
			if !t.made(m.source) {
				problems = append(problems, fmt.Sprintf("secret %s is not a file below .compose", m.name))
			}
			if replacePaths(told, map[string]string{m.target: ""}) == told {
				problems = append(problems, fmt.Sprintf("it gets the secret %s and is not told where", m.name))
			}
		case "config":
			if m.source == "" {
				problems = append(problems, fmt.Sprintf("config %s is no file: a read-only container cannot get it", m.name))
			} else if _, err := os.Stat(m.source); err != nil && !t.made(m.source) {
				problems = append(problems, fmt.Sprintf("config %s: %v", m.name, err))
			}
		}
	}
	for _, path := range secretPath.FindAllString(told, -1) {
		if !has[path] {
			problems = append(problems, fmt.Sprintf("it is told of %s, and has no such secret", path))
		}
	}
	return problems
}

// made says whether scripts/compose.sh makes a file, by where it is.
func (t *tree) made(file string) bool {
	return strings.HasPrefix(file, filepath.Join(t.root, ".compose")+"/")
}

// published wants ports to be published on loopback or where the settings say, from a network that has a way out.
func (t *tree) published(s types.ServiceConfig) (problems []string) {
	for _, port := range s.Ports {
		if ip := net.ParseIP(port.HostIP); ip == nil || !ip.IsLoopback() {
			problems = append(problems, fmt.Sprintf("port %d is published on %q", port.Target, port.HostIP))
		}
	}
	outside := slices.ContainsFunc(slices.Collect(maps.Keys(s.Networks)), func(name string) bool {
		return !t.project.Networks[name].Internal
	})
	if outside != (len(s.Ports) > 0) {
		problems = append(problems, "it is in a network with a way out without publishing anything, or the reverse")
	}
	return problems
}

// ours checks what holds of services of our image alone.
func (t *tree) ours(s types.ServiceConfig) (problems []string) {
	if s.Build == nil {
		return nil
	}
	programs := []string{}
	if len(s.Entrypoint) > 0 {
		programs = append(programs, s.Entrypoint[0])
	}
	if args, err := healthCommand(s); err == nil {
		programs = append(programs, args[0])
	}
	for _, program := range programs {
		if !t.image.has(s.Build.Target, program) {
			problems = append(problems, fmt.Sprintf("stage %s has no %s", s.Build.Target, program))
		}
	}
	if s.User != ourUser {
		problems = append(problems, "it runs as "+s.User+", not "+ourUser)
	}
	exposed := t.image.ports(s.Build.Target)
	for _, port := range ports(s) {
		if !slices.Contains(exposed, port) {
			problems = append(problems, fmt.Sprintf("port %d is not in an EXPOSE of stage %s", port, s.Build.Target))
		}
	}
	if s.Image != ourImage || ends(s) {
		return problems
	}
	if len(s.Entrypoint) != 1 || !slices.Equal(s.HealthCheck.Test, []string{"CMD", s.Entrypoint[0], "--check-health"}) {
		problems = append(problems, "its health is asked by something else than its own --check-health")
	}
	listens := []int{}
	for name, value := range s.Environment {
		if strings.HasSuffix(name, "_ADDR") && value != nil {
			_, port, err := net.SplitHostPort(*value)
			n, _ := strconv.Atoi(port)
			if err != nil || n == 0 || !slices.Contains(ports(s), n) {
				problems = append(problems, fmt.Sprintf("%s is %q, and the service does not say that it has this port", name, *value))
			}
			listens = append(listens, n)
		}
	}
	for _, port := range ports(s) {
		if !slices.Contains(listens, port) {
			problems = append(problems, fmt.Sprintf("it says that it has port %d, and listens on %v", port, listens))
		}
	}
	if s.Name == "worker" && (s.ContainerName != "" || len(s.Ports) > 0) {
		problems = append(problems, "it cannot be scaled: it has a name or a published port")
	}
	return problems
}

// unused finds what is declared and not used. The other way round the parser does itself.
func (t *tree) unused() (problems []string) {
	used := map[string]bool{}
	for _, s := range t.project.Services {
		all, err := mounts(t.project, s)
		if err != nil {
			continue // mounted() has told
		}
		for _, m := range all {
			used[m.kind+" "+m.name] = true
		}
		for name := range s.Networks {
			used["network "+name] = true
		}
	}
	declared := slices.Concat(
		named("secret ", t.project.Secrets), named("config ", t.project.Configs),
		named("volume ", t.project.Volumes), named("network ", t.project.Networks),
	)
	for _, one := range slices.Sorted(slices.Values(declared)) {
		if !used[one] {
			problems = append(problems, one+" is declared and not used")
		}
	}
	return problems
}

func named[V any](kind string, declared map[string]V) (all []string) {
	for name := range declared {
		all = append(all, kind+name)
	}
	return all
}

// scraped compares what Prometheus asks with what our services have.
func (t *tree) scraped() []string {
	content, err := os.ReadFile(t.project.Configs["prometheus"].File)
	if err != nil {
		return []string{"prometheus: " + err.Error()}
	}
	var config struct {
		Scrape []struct {
			DNS []struct {
				Names []string `yaml:"names"`
				Port  int      `yaml:"port"`
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
		Rules []string `yaml:"rule_files"`
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		return []string{"prometheus: " + err.Error()}
	}
	var problems, asked []string
	for _, scrape := range config.Scrape {
		for _, dns := range scrape.DNS {
			for _, name := range dns.Names {
				asked = append(asked, name)
				if s, is := t.project.Services[name]; !is || !slices.Contains(ports(s), dns.Port) {
					problems = append(problems, fmt.Sprintf("prometheus asks %s:%d, and there is no such port", name, dns.Port))
				}
			}
		}
	}
	for _, s := range t.project.Services {
		if s.Image == ourImage && !ends(s) && !slices.Contains(asked, s.Name) {
			problems = append(problems, "prometheus does not ask "+s.Name)
		}
	}
	all, err := mounts(t.project, t.project.Services["prometheus"])
	if err != nil {
		return append(problems, err.Error())
	}
	for _, rules := range config.Rules {
		if !slices.ContainsFunc(all, func(m mount) bool { return m.target == rules }) {
			problems = append(problems, "prometheus is told of "+rules+", which it does not have")
		}
	}
	return problems
}

// accepted has scripts/compose.sh make the secrets and the services of bin judge what they get.
func (t *tree) accepted(ctx context.Context, bin string) (problems []string, err error) {
	dir, err := os.MkdirTemp("", "sluice-composecheck-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := prepare(ctx, t.root, dir, bin)
	if err != nil {
		return nil, err
	}
	return t.judged(ctx, w), nil
}

// judged has every service of ours judge the settings and secrets that it gets: with --check-config, or, what ends by
// itself, by asking for the help of its command.
func (t *tree) judged(ctx context.Context, w world) (problems []string) {
	for _, name := range slices.Sorted(maps.Keys(t.project.Secrets)) {
		if _, err := os.Stat(w.stateFile(t.project.Secrets[name].File)); err != nil {
			problems = append(problems, fmt.Sprintf("scripts/compose.sh does not make it: %v", err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.project.Services)) {
		s := t.project.Services[name]
		if s.Image != ourImage {
			continue
		}
		args, want := []string{s.Entrypoint[0], "--check-config"}, ""
		if ends(s) {
			args = slices.Concat(s.Entrypoint, s.Command, []string{"--help"})
			want = strings.TrimSuffix(strings.Join(append([]string{filepath.Base(args[0])}, s.Command...), " "), " --help")
		}
		moved, err := w.process(t.project, s, args)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		cmd := exec.CommandContext(ctx, moved.Args[0], moved.Args[1:]...)
		cmd.Env = moved.Env
		said, err := cmd.CombinedOutput()
		if err == nil && !strings.Contains(string(said), want) {
			err = fmt.Errorf("there is no %q", want)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s does not accept what it gets: %v\n%s", name, err, said))
		}
	}
	return problems
}

// prepare runs the two steps of scripts/compose.sh that make the secrets, with this program in docker's place.
func prepare(ctx context.Context, root, dir, bin string) (world, error) {
	w := world{Root: root, State: filepath.Join(dir, "state"), Dir: filepath.Join(dir, "world"), Path: []string{bin}}
	shim := filepath.Join(w.Dir, "bin")
	if err := os.MkdirAll(shim, 0o755); err != nil {
		return w, err
	}
	if err := w.shim(shim); err != nil {
		return w, err
	}
	for _, step := range []string{"prepare", "keys"} {
		cmd := exec.CommandContext(ctx, filepath.Join(w.Root, "scripts", "compose.sh"), step)
		cmd.Env = append(os.Environ(), "SLUICE_COMPOSE_STATE="+w.State, "PATH="+shim+":"+os.Getenv("PATH"))
		if said, err := cmd.CombinedOutput(); err != nil {
			return w, fmt.Errorf("scripts/compose.sh %s: %w\n%s", step, err, said)
		}
	}
	return w, nil
}
