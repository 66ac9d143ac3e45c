package k8scheck

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// overlays are all that is checked, with what may connect to what. What stands here has to be true, and nothing else.
var overlays = map[string]struct {
	dir    string
	arrows string
}{
	"dev": {"../../k8s/overlays/dev", `
		ingress/ -> sluice-api:8080
		ingress/ -> sluice-auth:8081
		keda/ -> sluice-scheduler:9090
		monitoring/prometheus -> sluice-api:9090
		monitoring/prometheus -> sluice-auth:9090
		monitoring/prometheus -> sluice-scheduler:9090
		monitoring/prometheus -> sluice-worker:9090
		sample -> kube-system/kube-dns:53
		sample -> postgres:5432
		sluice-api -> kube-system/kube-dns:53
		sluice-api -> minio:9000
		sluice-api -> postgres:5432
		sluice-api -> redis:6379
		sluice-api -> sluice-auth:8081
		sluice-auth -> 0.0.0.0/0:443
		sluice-auth -> kube-system/kube-dns:53
		sluice-auth -> redis:6379
		sluice-migrate -> kube-system/kube-dns:53
		sluice-migrate -> postgres:5432
		sluice-scheduler -> kube-system/kube-dns:53
		sluice-scheduler -> minio:9000
		sluice-scheduler -> redis:6379
		sluice-worker -> kube-system/kube-dns:53
		sluice-worker -> minio:9000
		sluice-worker -> postgres:5432
		sluice-worker -> redis:6379`},
	"production": {"../../k8s/overlays/production", production0},
	"everything": {"testdata/everything", production0 + `
		sluice-api -> 0.0.0.0/0:443
		sluice-api -> monitoring/opentelemetry-collector:4318
		sluice-auth -> monitoring/opentelemetry-collector:4318
		sluice-scheduler -> monitoring/opentelemetry-collector:4318
		sluice-worker -> monitoring/opentelemetry-collector:4318`},
}

const production0 = `
		ingress/ -> sluice-api:8080
		ingress/ -> sluice-auth:8081
		keda/ -> sluice-scheduler:9090
		monitoring/prometheus -> sluice-api:9090
		monitoring/prometheus -> sluice-auth:9090
		monitoring/prometheus -> sluice-scheduler:9090
		monitoring/prometheus -> sluice-worker:9090
		sluice-api -> 192.0.2.10/32:6379
		sluice-api -> 192.0.2.20/32:443
		sluice-api -> 192.0.2.30/32:5432
		sluice-api -> kube-system/kube-dns:53
		sluice-api -> sluice-auth:8081
		sluice-auth -> 0.0.0.0/0:443
		sluice-auth -> 192.0.2.10/32:6379
		sluice-auth -> kube-system/kube-dns:53
		sluice-migrate -> 192.0.2.30/32:5432
		sluice-migrate -> kube-system/kube-dns:53
		sluice-scheduler -> 192.0.2.10/32:6379
		sluice-scheduler -> 192.0.2.20/32:443
		sluice-scheduler -> kube-system/kube-dns:53
		sluice-worker -> 192.0.2.10/32:6379
		sluice-worker -> 192.0.2.20/32:443
		sluice-worker -> 192.0.2.30/32:5432
		sluice-worker -> kube-system/kube-dns:53`

func TestOverlays(t *testing.T) {
	source := Source{Root: root}
	queues, err := source.Queues()
	if err != nil {
		t.Fatal(err)
	}
	for name, overlay := range overlays {
		t.Run(name, func(t *testing.T) {
			set := render(t, overlay.dir)
			secrets, values := developers(t)
			if name != "dev" {
				secrets, values = nil, production(t)
			}
			t.Run("applied", func(t *testing.T) { applied(t, set, secrets) })
			for what, check := range map[string]func() error{
				"pods":          set.Pods,
				"references":    set.References,
				"formulas":      set.Formulas,
				"lists":         func() error { return set.Lists(queues) },
				"graces":        func() error { return machine(t, set, values).Graces(source) },
				"configuration": func() error { return machine(t, set, values).Configuration(t.Context()) },
				"probes":        func() error { return machine(t, set, values).Probes(t.Context()) },
			} {
				t.Run(what, func(t *testing.T) {
					if err := check(); err != nil {
						t.Error(err)
					}
				})
			}
			t.Run("arrows", func(t *testing.T) {
				got, err := set.Arrows()
				if err != nil {
					t.Fatal(err)
				}
				var want []string
				for line := range strings.Lines(overlay.arrows) {
					if line = strings.TrimSpace(line); line != "" {
						want = append(want, line)
					}
				}
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("connections that are allowed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
		})
	}
}

// applied applies the objects, twice: the second time changes nothing, so that a third would not restart a pod either. Then it
// asks for a pod of each workload, which goes through the admission that the namespace asks for.
func applied(t *testing.T, set *Set, secrets []Object) {
	objects := slices.Concat(set.Objects, secrets)
	before, err := client.ApplyAll(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	after, err := client.ApplyAll(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		// A Secret's stringData is read and not kept, so that it is new to the server each time.
		if before[name] != after[name] && !strings.HasPrefix(name, "Secret ") {
			t.Errorf("%s is another after it was applied again", name)
		}
	}
	// A controller would make this one.
	account := Object{Object: map[string]any{
		"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "default", "namespace": set.Namespace},
	}}
	if _, err := client.Apply(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	for _, workload := range set.Workloads {
		if err := client.Try(t.Context(), workload.Pod(set.Namespace)); err != nil {
			t.Error(err)
		}
	}
}

// A new version is applied over the one before: nothing that cannot be changed stands in the way, and the migration is another
// Job, which runs.
func TestUpgrade(t *testing.T) {
	migration := func(set *Set) string {
		for _, w := range set.Workloads {
			if w.Kind == "Job" && program(w.Template.Spec.Containers[0]) == "sluice" {
				return w.Name
			}
		}
		t.Fatal("there is no migration")
		return ""
	}
	before := render(t, "../../k8s/overlays/production")
	if _, err := client.ApplyAll(t.Context(), before.Objects); err != nil {
		t.Fatal(err)
	}
	tree := altered(t, "overlays/production/kustomization.yaml", "newTag: git-1a2b3c4d5e6f", "newTag: git-6f5e4d3c2b1a")
	after := render(t, filepath.Join(tree, "overlays/production"))
	if _, err := client.ApplyAll(t.Context(), after.Objects); err != nil {
		t.Error(err)
	}
	if migration(before) != "sluice-migrate-git-1a2b3c4d5e6f" || migration(after) != "sluice-migrate-git-6f5e4d3c2b1a" {
		t.Errorf("the migrations are %s and %s", migration(before), migration(after))
	}
}

// Every change of a ConfigMap has another name, so that the pods that read it are made anew.
func TestConfigMapsAreNamedByContent(t *testing.T) {
	tree := altered(t, "overlays/production/kustomization.yaml", "https://s3.example.org", "https://s4.example.org")
	names := func(set *Set) map[string]bool {
		found := map[string]bool{}
		maps, err := all[corev1.ConfigMap](set, "ConfigMap")
		if err != nil {
			t.Fatal(err)
		}
		for _, each := range maps {
			found[each.Name] = true
		}
		return found
	}
	before, after := names(render(t, "../../k8s/overlays/production")), names(render(t, filepath.Join(tree, "overlays/production")))
	changed := 0
	for name := range after {
		if !before[name] {
			changed++
		}
	}
	if changed != 1 || len(before) != len(after) {
		t.Errorf("%d of %d names have changed, want 1", changed, len(after))
	}
}

// What somebody has to provide is in the documentation, key by key.
func TestSecretsAreDocumented(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root, "docs/kubernetes.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range render(t, "testdata/everything").Secrets() {
		for _, key := range keys {
			documented := false
			for line := range strings.Lines(string(content)) {
				documented = documented || strings.HasPrefix(line, "| `"+name+"` ") && strings.Contains(line, "`"+key+"`")
			}
			if !documented {
				t.Errorf("docs/kubernetes.md has no row for the key %s of the Secret %s", key, name)
			}
		}
	}
}

// The overlay dev makes all of its Secrets, and none that nobody wants.
func TestDevelopersSecrets(t *testing.T) {
	_, values := developers(t)
	want := render(t, "../../k8s/overlays/dev").Secrets()
	for name, keys := range want {
		for _, key := range keys {
			if values[name][key] == "" {
				t.Errorf("secrets.sh makes no key %s of the Secret %s", key, name)
			}
		}
	}
	for name := range values {
		if _, wanted := want[name]; !wanted {
			t.Errorf("secrets.sh makes the Secret %s, which no pod refers to", name)
		}
	}
}

// Who renames the namespace need not think of what KEDA asks.
func TestNamespaceIsSetInOnePlace(t *testing.T) {
	tree := altered(t, "overlays/production/kustomization.yaml", "namespace: sluice\n", "namespace: other\n")
	set := render(t, filepath.Join(tree, "overlays/production"))
	if err := set.References(); err != nil || set.Namespace != "other" {
		t.Errorf("in namespace %s: %v", set.Namespace, err)
	}
}

// Each component changes what it is for.
func TestComponents(t *testing.T) {
	set := render(t, "testdata/everything")
	for _, object := range set.Objects {
		if least, found, _ := unstructured.NestedInt64(object.Object, "spec", "minReplicaCount"); found && least != 0 {
			t.Errorf("with scale-to-zero there are %d workers at least", least)
		}
	}
	for _, w := range set.Workloads {
		if w.Kind != "Deployment" {
			continue
		}
		env, err := machine(t, set, production(t)).environment(w, w.Template.Spec.Containers[0])
		if err != nil || env["SLUICE_TRACE_ENDPOINT"] == "" || env["SLUICE_LOG_LEVEL"] == "" {
			t.Errorf("%s sends no traces: %v", w, err)
		}
	}
}

// The stores of the overlay dev are those of docker-compose.yml, which is tried with real ones.
func TestStoresOfCompose(t *testing.T) {
	compose, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range render(t, "../../k8s/overlays/dev").Workloads {
		for _, container := range w.containers() {
			image, store := strings.CutPrefix(container.Image, "docker.io/library/")
			if store && !strings.Contains(string(compose), "image: "+image+"\n") {
				t.Errorf("docker-compose.yml has no image %s", image)
			}
		}
	}
}

// An autoscaler that takes a worker for more or less than it does at once would start too few or too many.
func TestTargetIsWhatAWorkerDoes(t *testing.T) {
	set := render(t, "../../k8s/overlays/production")
	target := ""
	for _, object := range set.Objects {
		if object.GetKind() == "ScaledObject" {
			target, _, _ = unstructured.NestedString(object.Object, "spec", "advanced", "scalingModifiers", "target")
		}
	}
	for _, w := range set.Workloads {
		if program(w.Template.Spec.Containers[0]) != "worker" {
			continue
		}
		env, err := machine(t, set, production(t)).environment(w, w.Template.Spec.Containers[0])
		if concurrency := env["SLUICE_WORKER_CONCURRENCY"]; err != nil || target == "" || target != concurrency {
			t.Errorf("target is %q and SLUICE_WORKER_CONCURRENCY %q (%v)", target, concurrency, err)
		}
	}
}
