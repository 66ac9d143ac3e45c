package k8scheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Source reads what the services' source says of itself: there is no other place where these figures could be asked for.
type Source struct{ Root string }

// find returns what the expression's first group matches in a file.
func (s Source) find(file, expression string) ([]string, error) {
	content, err := os.ReadFile(filepath.Join(s.Root, file))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, match := range regexp.MustCompile(expression).FindAllSubmatch(content, -1) {
		found = append(found, string(match[1]))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has nothing like %s", file, expression)
	}
	return found, nil
}

// Queues are the names of the queues.
func (s Source) Queues() ([]string, error) {
	return s.find("pkg/queue/task.go", `(?m)^\t[a-z]+Queue += "([a-z]+)"`)
}

// seconds is a constant of so many seconds.
func (s Source) seconds(file, name string) (time.Duration, error) {
	found, err := s.find(file, `(?m)^(?:const|\t)? ?`+name+` = (\d+) \* time\.Second`)
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(found[0] + "s")
}

// Graces checks that no pod is killed in the middle of its end: for as long as it lets running work go on, hands back what
// is left, and finishes answers.
func (m Machine) Graces(source Source) error {
	answers, err := source.seconds("pkg/platform/http.go", "drainTimeout")
	if err != nil {
		return err
	}
	handBack, err := source.seconds("pkg/queue/serve.go", "handBack")
	if err != nil {
		return err
	}
	const margin = 5 * time.Second
	var found problems
	for _, w := range m.Set.Workloads {
		for _, container := range w.Template.Spec.Containers {
			name := program(container)
			if !slices.Contains(services, name) {
				continue
			}
			env, err := m.environment(w, container)
			if err != nil {
				return err
			}
			need := answers
			if name == "worker" || name == "scheduler" {
				variable := "SLUICE_" + strings.ToUpper(name) + "_DRAIN"
				drain, err := time.ParseDuration(env[variable]) // said in the open, so that the two can be compared
				if err != nil {
					found.add(w, "%s: %w", variable, err)
				}
				need = max(need, drain+handBack)
			}
			if life := container.Lifecycle; life != nil && life.PreStop != nil && life.PreStop.Sleep != nil {
				need += time.Duration(life.PreStop.Sleep.Seconds) * time.Second
			}
			grace := time.Duration(*w.Template.Spec.TerminationGracePeriodSeconds) * time.Second
			if grace < need+margin {
				found.add(w, "terminationGracePeriodSeconds is %s, want %s", grace, need+margin)
			}
		}
	}
	return errors.Join(found...)
}
