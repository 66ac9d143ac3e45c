package k8scheck

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// programs is where the image has ours.
const programs = "/usr/local/bin/"

// services are the programs that take --check-config.
var services = []string{"api", "auth", "worker", "scheduler"}

// program is the name of the program of ours that a container runs, or "".
func program(container corev1.Container) string {
	if len(container.Command) == 0 {
		return ""
	}
	name, found := strings.CutPrefix(container.Command[0], programs)
	if !found || !slices.Contains(append([]string{"sluice"}, services...), name) {
		return ""
	}
	return name
}

// Values are the contents of Secrets by name and key.
type Values map[string]map[string]string

// Machine runs programs of ours as pods would: with the environment, the files and the arguments of a container, below a
// folder in place of the root.
type Machine struct {
	Set     *Set
	Secrets Values
	Bin     string // folder of the programs
	Root    string // folder for what pods mount, empty at first
}

// mounted is a container whose volumes are in files.
type mounted struct {
	program string
	args    []string
	env     map[string]string
}

// mount writes the container's files and resolves its environment. It is an error if anything that they refer to is not
// there, or if a variable of ours names a file outside of what is mounted.
func (m Machine) mount(w Workload, container corev1.Container) (*mounted, error) {
	root := filepath.Join(m.Root, w.Name) // of all containers of the pod, which share what one of them writes
	var paths []string                    // longest first
	for _, mount := range container.VolumeMounts {
		paths = append(paths, mount.MountPath)
	}
	slices.SortFunc(paths, func(a, b string) int { return len(b) - len(a) })
	below := func(text string) string {
		for _, path := range paths {
			text = strings.ReplaceAll(text, path+"/", root+"\x00"+path[1:]+"/") // \x00: not again
		}
		return strings.ReplaceAll(text, "\x00", "/")
	}
	for _, mount := range container.VolumeMounts {
		i := slices.IndexFunc(w.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })
		if i < 0 {
			return nil, fmt.Errorf("there is no volume %s", mount.Name)
		}
		files, err := m.files(w.Template.Spec.Volumes[i])
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", mount.Name, err)
		}
		folder := filepath.Join(root, mount.MountPath)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, err
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(below(content)), 0o600); err != nil {
				return nil, err
			}
		}
	}
	env, err := m.environment(w, container)
	if err != nil {
		return nil, err
	}
	var found problems
	for name, value := range env {
		inside := slices.ContainsFunc(paths, func(path string) bool { return strings.HasPrefix(value, path+"/") })
		if strings.HasPrefix(name, "SLUICE_") && path.IsAbs(value) && !inside {
			found = append(found, fmt.Errorf("%s names %s, which nothing mounts", name, value))
		}
		env[name] = below(value)
	}
	ready := &mounted{program: filepath.Join(m.Bin, program(container)), env: env}
	for _, arg := range append(slices.Clone(container.Command[1:]), container.Args...) {
		if slices.Contains(paths, arg) {
			arg += "/"
		}
		ready.args = append(ready.args, below(arg))
	}
	return ready, errors.Join(found...)
}

// files are the contents of a volume by name.
func (m Machine) files(volume corev1.Volume) (map[string]string, error) {
	all := map[string]string{}
	pick := func(what string, from map[string]string, items []corev1.KeyToPath) error {
		if from == nil {
			return fmt.Errorf("there is no %s", what)
		}
		if len(items) == 0 {
			for key, value := range from {
				all[key] = value
			}
		}
		for _, item := range items {
			value, ok := from[item.Key]
			if !ok {
				return fmt.Errorf("%s has no key %s", what, item.Key)
			}
			all[item.Path] = value
		}
		return nil
	}
	switch {
	case volume.Secret != nil:
		name := volume.Secret.SecretName
		return all, pick("Secret "+name, m.Secrets[name], volume.Secret.Items)
	case volume.ConfigMap != nil:
		name := volume.ConfigMap.Name
		return all, pick("ConfigMap "+name, m.configMap(name), volume.ConfigMap.Items)
	case volume.Projected != nil:
		for _, source := range volume.Projected.Sources {
			var err error
			switch {
			case source.Secret != nil:
				err = pick("Secret "+source.Secret.Name, m.Secrets[source.Secret.Name], source.Secret.Items)
			case source.ConfigMap != nil:
				err = pick("ConfigMap "+source.ConfigMap.Name, m.configMap(source.ConfigMap.Name), source.ConfigMap.Items)
			default:
				err = errors.New("a source is neither Secret nor ConfigMap")
			}
			if err != nil {
				return nil, err
			}
		}
		return all, nil
	case volume.EmptyDir != nil:
		return nil, nil
	}
	return nil, errors.New("it is of a kind that no pod of ours should need")
}

// configMap is the data of one of the set, or nil.
func (m Machine) configMap(name string) map[string]string {
	maps, err := all[corev1.ConfigMap](m.Set, "ConfigMap")
	if err != nil {
		return nil
	}
	for _, each := range maps {
		if each.Name == name && each.Data != nil {
			return each.Data
		}
	}
	return nil
}

// environment is what the kubelet would set, the addresses of Services included where a pod asks for them.
func (m Machine) environment(w Workload, container corev1.Container) (map[string]string, error) {
	env := map[string]string{}
	if links := w.Template.Spec.EnableServiceLinks; links == nil || *links {
		found, err := all[corev1.Service](m.Set, "Service")
		if err != nil {
			return nil, err
		}
		for _, service := range found {
			env[strings.ToUpper(strings.ReplaceAll(service.Name, "-", "_"))+"_SERVICE_HOST"] = "10.96.0.1"
		}
	}
	for _, from := range container.EnvFrom {
		var data map[string]string
		switch {
		case from.ConfigMapRef != nil:
			data = m.configMap(from.ConfigMapRef.Name)
		case from.SecretRef != nil:
			data = m.Secrets[from.SecretRef.Name]
		}
		if data == nil {
			return nil, fmt.Errorf("envFrom: there is no %+v", from)
		}
		for name, value := range data {
			if _, twice := env[from.Prefix+name]; twice {
				return nil, fmt.Errorf("%s is set twice", from.Prefix+name)
			}
			env[from.Prefix+name] = value
		}
	}
	for _, variable := range container.Env {
		if _, twice := env[variable.Name]; twice {
			return nil, fmt.Errorf("%s is set twice", variable.Name)
		}
		value := variable.Value
		if variable.ValueFrom != nil {
			switch from := variable.ValueFrom; {
			case from.SecretKeyRef != nil:
				var ok bool
				if value, ok = m.Secrets[from.SecretKeyRef.Name][from.SecretKeyRef.Key]; !ok {
					return nil, fmt.Errorf("%s: Secret %s has no key %s", variable.Name, from.SecretKeyRef.Name, from.SecretKeyRef.Key)
				}
			case from.FieldRef != nil:
				value = "of-the-pod"
			default:
				return nil, fmt.Errorf("%s comes from something that is not checked", variable.Name)
			}
		}
		env[variable.Name] = value
	}
	return env, nil
}

// environ is the environment as a process takes it.
func (r *mounted) environ() []string {
	var all []string
	for name, value := range r.env {
		all = append(all, name+"="+value)
	}
	return all
}

// Configuration runs each service's --check-config as its container would be started. Commands are run until they find no
// database.
func (m Machine) Configuration(ctx context.Context) error {
	var found problems
	for _, w := range m.Set.Workloads {
		for _, container := range w.containers() {
			name := program(container)
			if name == "" {
				if strings.Contains(container.Image, "sluice:") {
					found.add(w, "container %s runs no program of ours in our image", container.Name)
				}
				continue
			}
			ready, err := m.mount(w, container)
			switch {
			case err != nil:
			case slices.Contains(services, name):
				err = errors.Join(ready.check(ctx), ready.addresses(container))
			default:
				err = ready.command(ctx)
			}
			if err != nil {
				found.add(w, "container %s: %w", container.Name, err)
			}
		}
	}
	return errors.Join(found...)
}

// check runs the service's --check-config.
func (r *mounted) check(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, r.program, append(slices.Clone(r.args), "--check-config")...)
	cmd.Env = r.environ()
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("--check-config: %w\n%s", err, output)
	}
	return nil
}

// Probes starts the services, all at once and without anything that they depend on, and asks what the probes and Prometheus
// would ask.
func (m Machine) Probes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var group sync.WaitGroup
	found := make([]error, len(m.Set.Workloads))
	for i, w := range m.Set.Workloads {
		group.Go(func() {
			for _, container := range w.Template.Spec.Containers {
				if !slices.Contains(services, program(container)) {
					continue
				}
				ready, err := m.mount(w, container)
				if err == nil {
					err = ready.serve(ctx, container, m.Set.asks(w))
				}
				if err != nil {
					found[i] = fmt.Errorf("%s, container %s: %w", w, container.Name, err)
				}
			}
		})
	}
	group.Wait()
	return errors.Join(found...)
}

// command runs a command of the command line. That it makes sense is all that can be known: there is no database.
func (r *mounted) command(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, r.program, r.args...)
	cmd.Env = r.environ()
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 1 && strings.Contains(string(output), "127.0.0.1:1"):
		return nil // the database of the made-up Secrets
	}
	return fmt.Errorf("%s: %w\n%s", strings.Join(r.args, " "), err, output)
}

// addresses checks that the service listens where the container's ports say.
func (r *mounted) addresses(container corev1.Container) error {
	var found problems
	for variable, name := range map[string]string{
		"SLUICE_PRIVATE_ADDR": "private", "SLUICE_API_ADDR": "public", "SLUICE_AUTH_ADDR": "public",
	} {
		address, given := r.env[variable]
		if !given {
			continue
		}
		if !slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool {
			return p.Name == name && address == fmt.Sprintf(":%d", p.ContainerPort)
		}) {
			found = append(found, fmt.Errorf("%s is %s, and the container has no such port called %s", variable, address, name))
		}
	}
	if r.env["SLUICE_PRIVATE_ADDR"] == "" {
		found = append(found, errors.New("SLUICE_PRIVATE_ADDR is not set: nobody could ask for its health"))
	}
	return errors.Join(found...)
}

// serve starts the service on ports that are free and asks what the probes would ask. Nothing that it depends on is there,
// so that ready it must not be.
func (r *mounted) serve(ctx context.Context, container corev1.Container, also []string) error {
	for _, variable := range []string{"SLUICE_PRIVATE_ADDR", "SLUICE_API_ADDR", "SLUICE_AUTH_ADDR"} {
		if _, given := r.env[variable]; given {
			r.env[variable] = "127.0.0.1:0"
		}
	}
	log, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, r.program, r.args...)
	cmd.Env, cmd.Stderr = r.environ(), writer
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = writer.Close() // the process has its own
	if err != nil {
		return err
	}
	address, err := privateAddress(log)
	drained := make(chan struct{})
	go func() { // a process that nobody listens to would wait
		defer close(drained)
		_, _ = io.Copy(io.Discard, log)
	}()
	if err == nil {
		err = ask(ctx, address, container, also)
	}
	if stopErr := cmd.Process.Signal(syscall.SIGTERM); stopErr != nil {
		err = errors.Join(err, stopErr)
	}
	<-drained
	return errors.Join(err, cmd.Wait())
}

// privateAddress reads the log until the service says where it listens.
func privateAddress(log io.Reader) (string, error) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		var line struct{ Private string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Private != "" {
			return line.Private, nil
		}
	}
	return "", errors.Join(errors.New("it does not say where it listens"), lines.Err())
}

// asks are the paths at which KEDA asks a workload's pods for figures.
func (s *Set) asks(w Workload) []string {
	var found []string
	for _, object := range s.Objects {
		if object.GetKind() != "ScaledObject" {
			continue
		}
		for _, asked := range askedURLs(object) {
			if at, err := url.Parse(asked); err == nil && strings.HasPrefix(at.Host, w.Component+".") {
				found = append(found, at.Path)
			}
		}
	}
	return found
}

// ask asks the probes and metrics, and the paths that need what the service depends on.
func ask(ctx context.Context, address string, container corev1.Container, also []string) error {
	want := map[string]int{"/metrics": http.StatusOK}
	for _, path := range also {
		want[path] = http.StatusServiceUnavailable
	}
	for _, probe := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Port.StrVal != "private" {
			return errors.New("a probe does not ask the private port by HTTP")
		}
		want[probe.HTTPGet.Path] = http.StatusOK
	}
	want[container.ReadinessProbe.HTTPGet.Path] = http.StatusServiceUnavailable
	var found problems
	for path, status := range want {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		if err := answer.Body.Close(); err != nil {
			return err
		}
		if answer.StatusCode != status {
			found = append(found, fmt.Errorf("%s answers %d without its dependencies, want %d", path, answer.StatusCode, status))
		}
	}
	return errors.Join(found...)
}
