//go:build kubernetes

// Package kubernetes tests k8s/ in a real cluster (scripts/cluster.sh).
package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

const (
	namespace = "sluice"
	clients   = 14 // exports at once; SLUICE_JOB_LIMIT is 15
	top       = "../../.."
)

// The overlay production is installed and used as docs/kubernetes.md says: KEDA scales the workers up while exports wait and
// down afterwards; a worker is killed, a pod is deleted, the workers are upgraded and a node is drained meanwhile. Every
// export has every line.
func TestProductionOverlay(t *testing.T) {
	work := t.TempDir()
	overlay := install(t, work)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, what := range []string{"get pods --all-namespaces --output wide", "get events --all-namespaces",
			"logs --namespace ingress --selector app.kubernetes.io/name=client --prefix --tail 3",
			"logs --namespace sluice --selector app.kubernetes.io/part-of=sluice --all-containers --prefix --tail 5"} {
			out, _ := exec.CommandContext(context.Background(), "kubectl", strings.Fields(what)...).CombinedOutput()
			t.Logf("%s:\n%s", what, out)
		}
	})
	if !t.Run("network policies", connections) || !t.Run("metrics of the API", hasMetrics) {
		return
	}
	want := expected(t, work)

	w := startWatch(t)
	check.Eventually(t, time.Minute, "the first samples", func() bool { return w.last().ready > 0 })
	export(t, "first", 1)
	check.Eventually(t, 5*time.Minute, "an export without a disturbance", func() bool { return finished(t, "first", 1) })
	w.note("one export is complete")

	export(t, "clients", clients)
	w.note(fmt.Sprintf("%d exports began", clients))
	check.Eventually(t, 5*time.Minute, "KEDA adds workers", func() bool { return w.last().ready >= 3 })
	w.note("KEDA has added workers")

	busy(t, w)
	killProcess(t)
	w.note("the process of a worker was killed")

	busy(t, w)
	victim := strings.Fields(kubectl(t, "--namespace", namespace, "get", "pods", "--selector", "app.kubernetes.io/name=sluice-worker",
		"--output", "name"))[0]
	kubectl(t, "--namespace", namespace, "delete", "--grace-period=0", "--force", victim)
	w.note("the pod of a worker was deleted by force")

	busy(t, w)
	w.note("an upgrade begins")
	edit(t, filepath.Join(overlay, "../../overlays/production/kustomization.yaml"), "newTag: one", "newTag: two")
	apply(t, overlay)
	kubectl(t, "--namespace", namespace, "rollout", "status", "deployment/sluice-worker", "--timeout=10m")
	w.note("all workers have the new version")

	busy(t, w)
	kubectl(t, "drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=10m")
	w.note("node 2 is drained")
	kubectl(t, "uncordon", "node2")

	check.Eventually(t, 20*time.Minute, "all exports", func() bool { return finished(t, "clients", clients) })
	w.note("all exports are complete")
	check.Eventually(t, 10*time.Minute, "KEDA removes workers", func() bool { return w.last().ready == 1 && w.last().replicas == 1 })
	w.note("KEDA has removed all workers but one")

	folders, err := filepath.Glob(filepath.Join(os.Getenv("CLUSTER_STORE"), "*-*"))
	check.Must(t, err)
	if len(folders) != clients+1 {
		t.Fatalf("%d clients wrote a folder", len(folders))
	}
	for _, folder := range folders {
		if got := expect.Folder(t, folder); !maps.Equal(got, want) {
			t.Errorf("%s differs from the population: %v, %v expected", filepath.Base(folder), got, want)
		}
	}
	peaks(t, w)
	jobs(t)
	if file := os.Getenv("SLUICE_CHART"); file != "" {
		check.Must(t, os.WriteFile(file, []byte(w.chart()), 0o644))
	}
}

// install edits a copy of the overlay, creates Secrets and applies both, as docs/kubernetes.md says. It returns the folder
// of the overlay.
func install(t *testing.T, work string) string {
	t.Helper()
	check.Must(t, os.CopyFS(filepath.Join(work, "k8s"), os.DirFS(filepath.Join(top, "k8s"))))
	production := filepath.Join(work, "k8s/overlays/production")
	overlay := filepath.Join(work, "k8s/test/cluster")
	edit(t, filepath.Join(production, "kustomization.yaml"),
		"newName: registry.example.org/sluice, newTag: git-1a2b3c4d5e6f", "newName: sluice, newTag: one")

	kubectl(t, "apply", "-f", filepath.Join(production, "namespace.yaml"))
	keys := filepath.Join(work, "keys")
	run(t, run(t, "", filepath.Join(top, "k8s/overlays/dev/secrets.sh"), keys, namespace), "kubectl", "apply", "-f", "-")
	apply(t, overlay)
	for _, name := range []string{"ingress", "monitoring"} {
		kubectl(t, "create", "namespace", name)
	}
	kubectl(t, "--namespace", "ingress", "create", "secret", "generic", "client", "--from-file", keys)

	for _, name := range []string{"redis", "postgres", "minio"} {
		kubectl(t, "--namespace", namespace, "rollout", "status", "statefulset/"+name, "--timeout=5m")
	}
	for _, name := range []string{"api", "auth", "scheduler", "worker"} {
		kubectl(t, "--namespace", namespace, "rollout", "status", "deployment/sluice-"+name, "--timeout=5m")
	}
	kubectl(t, "--namespace", namespace, "wait", "--for", "condition=Complete", "job/sample", "--timeout=10m")
	return overlay
}

// expected returns what an export of everybody has to hold: the job `sample` generated the same population.
func expected(t *testing.T, work string) map[string]expect.Fingerprint {
	t.Helper()
	data := filepath.Join(work, "data")
	run(t, "", filepath.Join(top, "bin/sluice"), "synth", "--patients", "2600", "--out", data)
	population := expect.Read(t, data)
	return expect.Fingerprints(population.Export(population.Members("all")))
}

// connections shows which connections the network policies allow, with pods that try them.
func connections(t *testing.T) {
	const scheduler = "http://sluice-scheduler.sluice.svc:9090/livez"
	const minio = "http://minio.sluice.svc:9000/minio/health/live"
	address := strings.TrimSpace(kubectl(t, "--namespace", namespace, "get", "pods", "--selector", "app.kubernetes.io/name=sluice-api",
		"--output", "jsonpath={.items[0].status.podIP}"))
	private := "http://" + address + ":9090/livez"
	for i, c := range []struct {
		from, label, url string
		allowed          bool
	}{
		{"monitoring", "prometheus", scheduler, true},
		{"monitoring", "prometheus", private, true},
		{"keda", "any", scheduler, true},
		{"monitoring", "grafana", scheduler, false},
		{"keda", "any", private, false},
		{"ingress", "controller", private, false},
		{"ingress", "controller", minio, false},
		{"default", "any", scheduler, false},
		{"default", "any", minio, false},
		{"default", "any", private, false},
		{namespace, "sluice-stranger", minio, false}, // a pod of the same namespace
	} {
		t.Run(fmt.Sprintf("%s-%s to %s", c.from, c.label, c.url), func(t *testing.T) {
			t.Parallel()
			pod := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe-%d", "namespace": %q,
				"labels": {"app.kubernetes.io/name": %q}}, "spec": {"restartPolicy": "OnFailure", "automountServiceAccountToken": false,
				"securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
				"containers": [{"name": "probe", "image": "sluice:one",
				"command": ["/usr/local/bin/sluice", "health", "--timeout", "5s", %q],
				"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}}`,
				i, c.from, c.label, c.url)
			run(t, pod, "kubectl", "apply", "-f", "-")
			name := fmt.Sprintf("probe-%d", i)
			defer kubectl(t, "--namespace", c.from, "delete", "pod", name, "--grace-period=0", "--force")
			var status struct {
				Status struct {
					Phase             string
					ContainerStatuses []struct{ RestartCount int }
				}
			}
			// It is repeated until it succeeds or has failed twice: an allowed connection may have to wait for the policy.
			check.Eventually(t, time.Minute, "the probe", func() bool {
				check.Must(t, json.Unmarshal([]byte(kubectl(t, "--namespace", c.from, "get", "pod", name, "--output", "json")), &status))
				s := status.Status
				return s.Phase == "Succeeded" || len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].RestartCount >= 2
			})
			if got := status.Status.Phase == "Succeeded"; got != c.allowed {
				t.Errorf("allowed: %v", got)
			}
		})
	}
}

// hasMetrics waits for the autoscaler of the API to know the load.
func hasMetrics(t *testing.T) {
	type autoscaler struct {
		Status struct {
			CurrentMetrics []struct {
				Resource struct {
					Current struct{ AverageUtilization *int }
				}
			}
		}
	}
	check.Eventually(t, 3*time.Minute, "the load of the API", func() bool {
		current := get[autoscaler](t, "hpa", "sluice-api").Status.CurrentMetrics
		return len(current) > 0 && current[0].Resource.Current.AverageUtilization != nil
	})
}

// export starts clients.
func export(t *testing.T, name string, count int) {
	t.Helper()
	template, err := os.ReadFile(filepath.Join(top, "k8s/test/client/client.yaml"))
	check.Must(t, err)
	job := strings.NewReplacer("@JOB@", name, "@STORE@", os.Getenv("CLUSTER_STORE"), "@CLIENTS@", strconv.Itoa(count)).
		Replace(string(template))
	run(t, job, "kubectl", "apply", "-f", "-")
}

// finished says whether all clients have their files. A client that gets an error entry or an incomplete file does not finish.
func finished(t *testing.T, name string, count int) bool {
	t.Helper()
	var job struct {
		Status struct{ Succeeded int }
	}
	check.Must(t, json.Unmarshal([]byte(kubectl(t, "--namespace", "ingress", "get", "job", name, "--output", "json")), &job))
	return job.Status.Succeeded == count
}

// busy waits until several workers run units.
func busy(t *testing.T, w *watch) {
	t.Helper()
	check.Eventually(t, 5*time.Minute, "workers run units", func() bool { return w.last().Active >= 3 && w.last().ready >= 2 })
}

// killProcess kills a worker with SIGKILL, as the kernel does.
func killProcess(t *testing.T) {
	t.Helper()
	programs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check.Must(t, err)
	for _, program := range programs {
		command, _ := os.ReadFile(program)
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(program), "cgroup"))
		if strings.HasPrefix(string(command), "/usr/local/bin/worker\x00") && strings.Contains(string(groups), "/sluice-node") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(program)))
			check.Must(t, err)
			check.Must(t, syscall.Kill(pid, syscall.SIGKILL))
			return
		}
	}
	t.Fatal("no worker runs")
}

// peaks compares the most memory that each container used with its limit.
func peaks(t *testing.T, w *watch) {
	t.Helper()
	limits := map[string]string{}
	for _, pod := range get[pods](t, "pods").Items {
		for _, c := range pod.Spec.Containers {
			limits[c.Name] = c.Resources.Limits.Memory
		}
		for _, c := range pod.Status.ContainerStatuses {
			for _, end := range []*struct{ Reason string }{c.State.Terminated, c.LastState.Terminated} {
				if end != nil && end.Reason == "OOMKilled" {
					t.Errorf("%s of %s ran out of memory", c.Name, pod.Metadata.Name)
				}
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.peaks)) {
		t.Logf("peak of %-10s %4d MiB of %s", name, w.peaks[name]>>20, limits[name])
	}
}

// jobs checks that the operator's list has the jobs of all clients, and that all are completed.
func jobs(t *testing.T) {
	t.Helper()
	var list struct{ States map[string]int }
	check.Must(t, json.Unmarshal([]byte(kubectl(t, "--namespace", namespace, "exec", "deployment/sluice-scheduler", "--",
		"/usr/local/bin/sluice", "admin", "job", "list", "--json")), &list))
	if want := map[string]int{"completed": clients + 1}; !maps.Equal(list.States, want) {
		t.Errorf("jobs: %v, want %v", list.States, want)
	}
}
