package k8scheck

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// altered is a copy of k8s/ in which a text of one file, which has to be there, is replaced wherever it stands.
func altered(t *testing.T, file, before, after string) string {
	t.Helper()
	tree := t.TempDir()
	if err := os.CopyFS(tree, os.DirFS(filepath.Join(root, "k8s"))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tree, file)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), before) {
		t.Fatalf("%s has no %q", file, before)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(content), before, after)), 0o600); err != nil {
		t.Fatal(err)
	}
	return tree
}

// A check that cannot fail proves nothing: each of these mistakes has to be found.
func TestMistakesAreFound(t *testing.T) {
	if _, err := client.ApplyAll(t.Context(), render(t, "../../k8s/overlays/production").Objects); err != nil {
		t.Fatal(err)
	}
	asking, err := NewClient(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	asking.DryRun = true
	source, values := Source{Root: root}, production(t)
	apply := func(ctx context.Context, set *Set) error {
		_, err := asking.ApplyAll(ctx, set.Objects)
		return err
	}
	pods := func(ctx context.Context, set *Set) error {
		var found []error
		for _, w := range set.Workloads {
			found = append(found, asking.Try(ctx, w.Pod(set.Namespace)))
		}
		return errors.Join(found...)
	}
	configuration := func(ctx context.Context, set *Set) error { return machine(t, set, values).Configuration(ctx) }
	probing := func(ctx context.Context, set *Set) error { return machine(t, set, values).Probes(ctx) }
	graces := func(_ context.Context, set *Set) error { return machine(t, set, values).Graces(source) }
	lists := func(_ context.Context, set *Set) error {
		queues, err := source.Queues()
		return errors.Join(err, set.Lists(queues))
	}
	references := func(_ context.Context, set *Set) error { return set.References() }
	formulas := func(_ context.Context, set *Set) error { return set.Formulas() }
	arrows := func(_ context.Context, set *Set) error {
		_, err := set.Arrows()
		return err
	}
	alone := func(_ context.Context, set *Set) error { return set.Pods() }

	for name, test := range map[string]struct {
		file, before, after string
		check               func(context.Context, *Set) error
		want                string
	}{
		"a misspelt field":              {"base/api.yaml", "enableServiceLinks", "enableServiceLink", apply, `enableServiceLink`},
		"a misspelt field of KEDA's":    {"base/worker-scaledobject.yaml", "pollingInterval", "pollInterval", apply, "pollInterval"},
		"a misspelt field of a monitor": {"base/podmonitor.yaml", "scrapeTimeout", "scrapeTimeOut", apply, "scrapeTimeOut"},
		"a wrong apiVersion":            {"base/api.yaml", "autoscaling/v2", "autoscaling/v2beta2", apply, "HorizontalPodAutoscaler"},
		"a wrong kind":                  {"base/podmonitor.yaml", "kind: PodMonitor", "kind: PodsMonitor", apply, "PodsMonitor"},
		"a value out of range":          {"base/api.yaml", "averageUtilization: 70", "averageUtilization: -1", apply, "averageUtilization"},
		"a budget of both kinds":        {"base/api.yaml", "maxUnavailable: 1\n", "maxUnavailable: 1\n  minAvailable: 1\n", apply, "cannot be both set"},
		"a pod that may gain rights":    {"base/worker.yaml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", pods, "allowPrivilegeEscalation"},
		"a Deployment of such pods":     {"base/worker.yaml", "drop: [ALL]", "drop: []", apply, "unrestricted capabilities"},
		"an account that is not there":  {"base/worker.yaml", "serviceAccountName: sluice-worker", "serviceAccountName: worker", alone, "service account worker"},

		"a root file system that can be written": {"base/auth.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", alone, "readOnlyRootFilesystem"},
		"secrets for everybody":                  {"base/auth.yaml", "defaultMode: 0440", "defaultMode: 0444", alone, "read by everybody"},
		"an image of any version":                {"overlays/production/kustomization.yaml", "newTag: git-1a2b3c4d5e6f", "newTag: latest", alone, "not pinned"},
		"a probe of no port":                     {"base/scheduler.yaml", "path: /livez, port: private", "path: /livez, port: health", alone, "health"},
		"a soft limit above the hard one":        {"base/api.yaml", "value: 200MiB", "value: 300MiB", alone, "GOMEMLIMIT"},

		"an unknown variable":      {"base/kustomization.yaml", "SLUICE_LOG_LEVEL", "SLUICE_LOGLEVEL", configuration, "SLUICE_LOGLEVEL is not a setting"},
		"a variable of others":     {"base/scheduler.yaml", "configMapRef: {name: sluice-jobs}", "configMapRef: {name: sluice-worker}", configuration, "SLUICE_WORKER_DRAIN is not a setting"},
		"a value that is none":     {"base/kustomization.yaml", "SLUICE_WORKER_EXPRESS=2", "SLUICE_WORKER_EXPRESS=two", configuration, "SLUICE_WORKER_EXPRESS"},
		"a key that is not there":  {"base/worker.yaml", "key: keys", "key: key", configuration, "no key key"},
		"a map that is not there":  {"base/api.yaml", "configMap: {name: sluice-issuers}", "configMap: {name: sluice-issuer}", configuration, "no ConfigMap sluice-issuer"},
		"a file of nowhere":        {"base/auth.yaml", "/etc/sluice/tls/tls.crt", "/etc/ssl/certs/ca-certificates.crt", configuration, "which nothing mounts"},
		"an issuer's misspelt key": {"overlays/production/issuers.yaml", "audiences", "audience", configuration, "audience"},
		"links to Services":        {"base/api.yaml", "enableServiceLinks: false", "enableServiceLinks: true", configuration, "SLUICE_AUTH_SERVICE_HOST is not a setting"},
		"a command that is none":   {"base/migrate.yaml", "admin, migrate", "admin, migrates", configuration, "migrates"},
		"a probe of no path":       {"base/worker.yaml", "/livez", "/alive", probing, "/alive answers 404"},
		"a question of no path":    {"base/worker-scaledobject.yaml", ":9090/scale", ":9090/scales", probing, "/scales answers 404"},
		"another port":             {"base/kustomization.yaml", "SLUICE_API_ADDR=:8080", "SLUICE_API_ADDR=:8000", configuration, "SLUICE_API_ADDR"},

		"a short grace":           {"base/worker.yaml", "GracePeriodSeconds: 240", "GracePeriodSeconds: 205", graces, "want 3m30s"},
		"a list of no queue":      {"base/worker-scaledobject.yaml", "asynq:{bulk}:pending", "asynq:{bulk}:waiting", lists, "asynq:{bulk}:waiting"},
		"a queue that is none":    {"base/worker-scaledobject.yaml", "asynq:{bulk}:active", "asynq:{large}:active", lists, "asynq:{large}:active"},
		"a name of no trigger":    {"base/worker-scaledobject.yaml", "name: bulk_scheduled", "name: bulk", formulas, "bulk_scheduled, which is no trigger"},
		"a trigger for nothing":   {"base/worker-scaledobject.yaml", "name: bulk_scheduled", "name: bulk", formulas, `does not use the trigger "bulk"`},
		"a Service of no pods":    {"base/auth.yaml", "selector: {app.kubernetes.io/name: sluice-auth}", "selector: {app: auth}", references, "selects no pods"},
		"a Service of no port":    {"base/auth.yaml", "targetPort: public", "targetPort: https", references, "no port https"},
		"a monitor of no port":    {"base/podmonitor.yaml", "port: private", "port: metrics", references, "port metrics"},
		"two who say how many":    {"base/api.yaml", "  strategy:", "  replicas: 3\n  strategy:", references, "replicas itself"},
		"nobody to scale":         {"base/worker-scaledobject.yaml", "scaleTargetRef: {name: sluice-worker}", "scaleTargetRef: {name: worker}", references, "no Deployment worker"},
		"nobody to ask":           {"base/worker-scaledobject.yaml", "sluice-scheduler.sluice.svc:9090", "scheduler.sluice.svc:9090", references, "of no Service"},
		"another namespace":       {"overlays/production/kustomization.yaml", "fieldPath: metadata.namespace", "fieldPath: metadata.name", references, "of no Service"},
		"a route to nowhere":      {"overlays/production/ingress.yaml", "name: sluice-auth, port", "name: auth, port", references, "no service auth"},
		"a policy of no port":     {"base/networkpolicies.yaml", "port: 8081", "port: 8082", arrows, "no port 8082"},
		"a policy of no pods":     {"base/networkpolicies.yaml", "sluice-scheduler", "scheduler", arrows, "selects no pods"},
		"a policy without an end": {"base/networkpolicies.yaml", "    - from: [{podSelector: {matchLabels: {app.kubernetes.io/name: sluice-api}}}]\n      ports", "    - ports", arrows, "allows everybody"},
	} {
		t.Run(name, func(t *testing.T) {
			set := render(t, filepath.Join(altered(t, test.file, test.before, test.after), "overlays/production"))
			if err := test.check(t.Context(), set); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want an error about %s", err, test.want)
			}
		})
	}
}
