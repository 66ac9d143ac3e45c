package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// world says what stands for what when services run outside of containers.
type world struct {
	Root  string         `json:"root"`  // of the repository
	State string         `json:"state"` // stands for ROOT/.compose, and holds .env
	Dir   string         `json:"dir"`   // where volumes, tmpfs and mounted files go
	Path  []string       `json:"path"`  // folders with programs, before those of PATH
	Ports map[string]int `json:"ports"` // "service:port" of containers to ports of loopback
}

// process is a command outside of a container.
type process struct {
	Args []string          `json:"args"`
	Env  []string          `json:"env"`
	Dirs map[string]string `json:"dirs"` // where the targets of its mounts are
}

func readWorld(file string) (world, error) {
	var w world
	content, err := os.ReadFile(file)
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal(content, &w); err != nil {
		return w, fmt.Errorf("%s: %w", file, err)
	}
	return w, nil
}

// load reads the repository's file with the settings of the state.
func (w world) load(ctx context.Context, profiles ...string) (*types.Project, error) {
	content, err := os.ReadFile(filepath.Join(w.Root, composeFile))
	if err != nil {
		return nil, err
	}
	env, err := readSettings(filepath.Join(w.State, ".env"))
	if err != nil {
		return nil, err
	}
	return load(ctx, w.Root, content, env, profiles...)
}

// outside returns how a service runs, with its own command or with other arguments.
func (w world) outside(project *types.Project, name string, args ...string) (process, error) {
	s, err := project.GetService(name)
	if err != nil {
		return process{}, err
	}
	if len(args) == 0 {
		args = s.Command
	}
	return w.process(project, s, append(slices.Clone([]string(s.Entrypoint)), args...))
}

// health returns how a service's health is asked.
func (w world) health(project *types.Project, name string) (process, error) {
	s, err := project.GetService(name)
	if err != nil {
		return process{}, err
	}
	args, err := healthCommand(s)
	if err != nil {
		return process{}, err
	}
	return w.process(project, s, args)
}

// healthCommand is the command of a service's health check.
func healthCommand(s types.ServiceConfig) ([]string, error) {
	if s.HealthCheck == nil || len(s.HealthCheck.Test) < 2 {
		return nil, fmt.Errorf("%s has no health check", s.Name)
	}
	switch test := s.HealthCheck.Test; test[0] {
	case "CMD":
		return test[1:], nil
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", test[1]}, nil
	default:
		return nil, fmt.Errorf("%s: a health check begins with CMD or CMD-SHELL, not %s", s.Name, test[0])
	}
}

// process moves a command out of its container: programs, paths, hosts and ports become those of this machine.
func (w world) process(project *types.Project, s types.ServiceConfig, args []string) (process, error) {
	if len(args) == 0 {
		return process{}, fmt.Errorf("%s: it has no command, and the image's is not known here", s.Name)
	}
	all, err := mounts(project, s)
	if err != nil {
		return process{}, err
	}
	places := map[string]string{}
	for _, m := range all {
		if places[m.target], err = w.place(s.Name, m); err != nil {
			return process{}, err
		}
	}
	rewrite := func(text string) string {
		return replacePaths(w.hosts(w.own(s.Name, text)), places)
	}
	moved := process{Dirs: places}
	program, err := w.program(args[0])
	if err != nil {
		return process{}, err
	}
	moved.Args = append(moved.Args, program)
	for _, arg := range args[1:] {
		moved.Args = append(moved.Args, rewrite(arg))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		if value := s.Environment[name]; value != nil {
			moved.Env = append(moved.Env, name+"="+rewrite(*value))
		}
	}
	moved.Env = append(moved.Env, "PATH="+strings.Join(append(slices.Clone(w.Path), os.Getenv("PATH")), ":"))
	return moved, nil
}

// place makes what a mount stands for and returns where that is. Files are copied: they name hosts too.
func (w world) place(service string, m mount) (string, error) {
	switch m.kind {
	case "volume":
		at := filepath.Join(w.Dir, "volumes", m.source)
		return at, os.MkdirAll(at, 0o755)
	case "tmpfs":
		at := filepath.Join(w.Dir, "tmpfs", service, m.target)
		return at, os.MkdirAll(at, 0o755)
	case "bind":
		return m.source, nil
	}
	content, err := os.ReadFile(w.stateFile(m.source))
	if err != nil {
		return "", fmt.Errorf("%s: %s %s: %w", service, m.kind, m.name, err)
	}
	at := filepath.Join(w.Dir, "files", service, m.target)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return "", err
	}
	fresh, err := os.CreateTemp(filepath.Dir(at), ".new-*") // mode 0600; others may be reading the one before
	if err != nil {
		return "", err
	}
	_, err = fresh.WriteString(w.hosts(string(content)))
	return at, errors.Join(err, fresh.Close(), os.Rename(fresh.Name(), at))
}

// stateFile maps a file below ROOT/.compose to where the state is.
func (w world) stateFile(file string) string {
	if rest, below := strings.CutPrefix(file, filepath.Join(w.Root, ".compose")+"/"); below {
		return filepath.Join(w.State, rest)
	}
	return file
}

// hosts replaces "service:port" by where that is reached.
func (w world) hosts(text string) string {
	for _, at := range slices.Sorted(maps.Keys(w.Ports)) {
		pattern := regexp.MustCompile(`(^|[^A-Za-z0-9.-])` + regexp.QuoteMeta(at) + `\b`)
		text = pattern.ReplaceAllString(text, "${1}127.0.0.1:"+strconv.Itoa(w.Ports[at]))
	}
	return text
}

// own replaces a service's own ports in what it is told: an address to listen on, one to ask itself at, or a bare port.
func (w world) own(service, text string) string {
	for at, port := range w.Ports {
		name, own, _ := strings.Cut(at, ":")
		if name != service {
			continue
		}
		here := strconv.Itoa(port)
		switch text {
		case own:
			return here
		case ":" + own:
			return "127.0.0.1:" + here
		}
		text = regexp.MustCompile(`127\.0\.0\.1:`+own+`\b`).ReplaceAllString(text, "127.0.0.1:"+here)
	}
	return text
}

// replacePaths replaces paths, and what begins with one as a folder, and nothing that merely begins with its letters. What
// was put in is not looked at again.
func replacePaths(text string, places map[string]string) string {
	longest := slices.SortedFunc(maps.Keys(places), func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	var out strings.Builder
	for at := 0; at < len(text); {
		from := ""
		if at == 0 || !pathLetter(text[at-1]) {
			for _, path := range longest {
				rest, is := strings.CutPrefix(text[at:], path)
				if is && (rest == "" || rest[0] == '/' || !pathLetter(rest[0])) {
					from = path
					break
				}
			}
		}
		if from == "" {
			out.WriteByte(text[at])
			at++
			continue
		}
		out.WriteString(places[from])
		at += len(from)
	}
	return out.String()
}

func pathLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_./-", c) >= 0
}

// program finds the program of a container's path by its name.
func (w world) program(inside string) (string, error) {
	name := filepath.Base(inside)
	for _, dir := range w.Path {
		if at, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return at, nil
		}
	}
	at, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("the program %s is not on this machine: %w", name, err)
	}
	return at, nil
}
