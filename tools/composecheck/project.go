package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

const (
	composeFile = "docker-compose.yml"
	settings    = ".env.example"
)

// load reads the file as docker compose does with these settings and profiles. Paths come back absolute, below root.
func load(
	ctx context.Context, root string, content []byte, env map[string]string, profiles ...string,
) (*types.Project, error) {
	return loader.LoadWithContext(ctx, types.ConfigDetails{
		WorkingDir:  root,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(root, composeFile), Content: content}},
		Environment: maps.Clone(env), // the loader adds to it
	}, func(o *loader.Options) {
		o.Profiles = profiles
		o.SetProjectName("sluice", true)
	})
}

// readSettings reads a file such as .env.
func readSettings(file string) (map[string]string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return dotenv.UnmarshalBytesWithLookup(content, nil)
}

// service is what a test needs to know to start one.
type service struct {
	Name      string            `json:"name"`
	DependsOn map[string]string `json:"depends_on"` // condition by name
	Ports     []int             `json:"ports"`      // in the container
	Ends      bool              `json:"ends"`       // by itself, with its work done
	Health    bool              `json:"health"`     // can be asked
	Grace     string            `json:"grace"`      // how long it may take to stop
}

// started are the services that `docker compose up` starts, each after those that it depends on.
func started(project *types.Project) []service {
	var order []service
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		of := project.Services[name]
		for _, before := range slices.Sorted(maps.Keys(of.DependsOn)) {
			visit(before)
		}
		s := service{Name: name, DependsOn: map[string]string{}, Ends: ends(of), Health: of.HealthCheck != nil}
		for before, how := range of.DependsOn {
			s.DependsOn[before] = how.Condition
		}
		if of.StopGracePeriod != nil {
			s.Grace = of.StopGracePeriod.String()
		}
		s.Ports = ports(of)
		order = append(order, s)
	}
	for _, name := range slices.Sorted(maps.Keys(project.Services)) {
		visit(name)
	}
	return order
}

// ends says whether a service is one that ends when its work is done.
func ends(s types.ServiceConfig) bool { return s.Restart == types.RestartPolicyNo }

// ports are those that others reach a service by, published or not.
func ports(s types.ServiceConfig) []int {
	all := map[int]bool{}
	for _, port := range s.Ports {
		all[int(port.Target)] = true
	}
	for _, port := range s.Expose {
		if n, err := strconv.Atoi(port); err == nil {
			all[n] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// mount is something that a container finds at a path of its own.
type mount struct {
	source string // a file or a folder of the host's; a volume's name; "" for a tmpfs
	target string
	kind   string // secret, config, bind, volume or tmpfs
	name   string // of the secret, config or volume
}

// mounts are all that a service has.
func mounts(project *types.Project, s types.ServiceConfig) ([]mount, error) {
	var all []mount
	for _, secret := range s.Secrets {
		target := secret.Target
		if target == "" {
			target = secret.Source
		}
		if !filepath.IsAbs(target) {
			target = "/run/secrets/" + target
		}
		all = append(all, mount{project.Secrets[secret.Source].File, target, "secret", secret.Source})
	}
	for _, config := range s.Configs {
		target := config.Target
		if target == "" {
			target = "/" + config.Source
		}
		all = append(all, mount{project.Configs[config.Source].File, target, "config", config.Source})
	}
	for _, volume := range s.Volumes {
		switch volume.Type {
		case types.VolumeTypeBind:
			all = append(all, mount{volume.Source, volume.Target, "bind", volume.Source})
		case types.VolumeTypeVolume:
			all = append(all, mount{volume.Source, volume.Target, "volume", volume.Source})
		default:
			return nil, fmt.Errorf("%s: volumes of type %q are not known here", s.Name, volume.Type)
		}
	}
	for _, tmpfs := range s.Tmpfs {
		target, _, _ := strings.Cut(tmpfs, ":")
		all = append(all, mount{"", target, "tmpfs", target})
	}
	return all, nil
}
