//go:build kubernetes

package kubernetes

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// run runs a command with this input and returns its standard output.
func run(t *testing.T, input string, name string, args ...string) string {
	t.Helper()
	out, err := try(t, input, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out
}

func try(t *testing.T, input string, name string, args ...string) (string, error) {
	t.Helper()
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &problems
	err := cmd.Run()
	if err != nil {
		t.Logf("%s %s: %s", name, strings.Join(args, " "), strings.TrimSpace(problems.String()))
	}
	return out.String(), err
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "", "kubectl", args...)
}

// get returns an object, or a list, in the namespace of Sluice.
func get[T any](t *testing.T, args ...string) (object T) {
	t.Helper()
	out := kubectl(t, append([]string{"--namespace", namespace, "get", "--output", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &object); err != nil {
		t.Fatal(err)
	}
	return object
}

type deployment struct {
	Spec   struct{ Replicas int }
	Status struct{ ReadyReplicas int }
}

type pods struct {
	Items []struct {
		Metadata struct{ Name string }
		Spec     struct {
			NodeName   string
			Containers []struct {
				Name      string
				Resources struct{ Limits struct{ Memory string } }
			}
		}
		Status struct {
			ContainerStatuses []struct {
				Name             string
				RestartCount     int
				State, LastState struct{ Terminated *struct{ Reason string } }
			}
		}
	}
}

// apply builds an overlay of a copy of k8s/ and applies it.
func apply(t *testing.T, dir string) {
	t.Helper()
	run(t, kubectl(t, "kustomize", dir), "kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-")
}

// edit replaces text in a file, and fails if it is not there.
func edit(t *testing.T, file string, replacements ...string) {
	t.Helper()
	content, err := os.ReadFile(file)
	check.Must(t, err)
	for i := 0; i < len(replacements); i += 2 {
		if !bytes.Contains(content, []byte(replacements[i])) {
			t.Fatalf("%s has no %q", filepath.Base(file), replacements[i])
		}
	}
	check.Must(t, os.WriteFile(file, []byte(strings.NewReplacer(replacements...).Replace(string(content))), 0o600))
}
