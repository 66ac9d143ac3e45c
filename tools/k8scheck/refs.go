package k8scheck

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// problems collects what is wrong.
type problems []error

func (p *problems) add(about fmt.Stringer, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %w", about, fmt.Errorf(format, args...)))
}

// named is the name of an object in a message.
type named string

func (n named) String() string { return string(n) }

// Pods checks each workload by itself: how it is locked up, its image, its volumes, its probes, how long it may end.
func (s *Set) Pods() error {
	var found problems
	for _, w := range s.Workloads {
		spec := w.Template.Spec
		if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
			found.add(w, "automountServiceAccountToken must be false")
		}
		if ours(w) && spec.ServiceAccountName != "" && !s.has("ServiceAccount", spec.ServiceAccountName) {
			found.add(w, "there is no service account %s", spec.ServiceAccountName)
		}
		volumes, used := map[string]bool{}, map[string]bool{}
		for _, volume := range spec.Volumes {
			volumes[volume.Name] = true
			if mode := secretMode(volume); mode != nil && *mode&0o007 != 0 {
				found.add(w, "the secrets of volume %s may be read by everybody (mode %#o)", volume.Name, *mode)
			}
		}
		for _, container := range w.containers() {
			about := named(w.String() + ", container " + container.Name)
			lockedUp(&found, about, container)
			tag := container.Image[strings.LastIndex(container.Image, "/")+1:]
			if _, version, ok := strings.Cut(tag, ":"); !ok || version == "latest" {
				found.add(about, "the image %s is not pinned", container.Image)
			}
			for _, mount := range container.VolumeMounts {
				used[mount.Name] = true
				if !volumes[mount.Name] {
					found.add(about, "there is no volume %s", mount.Name)
				}
			}
			probes(&found, about, container)
		}
		for _, volume := range spec.Volumes {
			if !used[volume.Name] {
				found.add(w, "volume %s is mounted nowhere", volume.Name)
			}
		}
		if w.Kind == "Deployment" {
			for _, container := range spec.Containers {
				if container.LivenessProbe == nil || container.ReadinessProbe == nil || container.StartupProbe == nil {
					found.add(w, "it wants all three probes")
				}
			}
			if len(spec.TopologySpreadConstraints) == 0 {
				found.add(w, "nothing spreads its pods")
			}
		}
	}
	return errors.Join(found...)
}

// ours says whether a workload runs a program of ours.
func ours(w Workload) bool {
	return len(w.Template.Spec.Containers) > 0 && program(w.Template.Spec.Containers[0]) != ""
}

func secretMode(volume corev1.Volume) *int32 {
	usual := corev1.SecretVolumeSourceDefaultMode
	var mode *int32
	switch {
	case volume.Secret != nil:
		mode = volume.Secret.DefaultMode
	case volume.Projected != nil:
		mode = volume.Projected.DefaultMode
	default:
		return nil
	}
	if mode == nil {
		return &usual
	}
	return mode
}

// lockedUp checks what the pod security level "restricted" leaves open.
func lockedUp(found *problems, about fmt.Stringer, container corev1.Container) {
	context := container.SecurityContext
	if context == nil || context.ReadOnlyRootFilesystem == nil || !*context.ReadOnlyRootFilesystem {
		found.add(about, "readOnlyRootFilesystem must be true")
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if container.Resources.Requests.Name(name, "").IsZero() {
			found.add(about, "it requests no %s", name)
		}
	}
	limit := container.Resources.Limits.Memory()
	if limit.IsZero() {
		found.add(about, "its memory has no limit")
	}
	for _, variable := range container.Env {
		if variable.Name != "GOMEMLIMIT" {
			continue
		}
		soft, err := parseMemory(variable.Value)
		if err != nil || soft >= limit.Value() {
			found.add(about, "GOMEMLIMIT %s has to be below the limit %s (%v)", variable.Value, limit, err)
		}
	}
}

func parseMemory(text string) (int64, error) {
	var n int64
	if _, err := fmt.Sscanf(text, "%dMiB", &n); err != nil {
		return 0, fmt.Errorf("want a number of MiB: %w", err)
	}
	return n << 20, nil
}

func probes(found *problems, about fmt.Stringer, container corev1.Container) {
	for name, probe := range map[string]*corev1.Probe{
		"startup": container.StartupProbe, "liveness": container.LivenessProbe, "readiness": container.ReadinessProbe,
	} {
		if probe == nil {
			continue
		}
		var port *intstr.IntOrString
		switch {
		case probe.HTTPGet != nil:
			port = &probe.HTTPGet.Port
		case probe.TCPSocket != nil:
			port = &probe.TCPSocket.Port
		default:
			continue
		}
		if !hasPort(container, *port) {
			found.add(about, "the %s probe asks port %s, which the container has not", name, port)
		}
	}
}

func hasPort(container corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool {
		return port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal
	})
}

// port is the number of a port of a workload's pods, or 0.
func (w Workload) port(port intstr.IntOrString) int32 {
	for _, container := range w.Template.Spec.Containers {
		for _, p := range container.Ports {
			if port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return p.ContainerPort
			}
		}
	}
	return 0
}

func (s *Set) has(kind, name string) bool {
	return slices.ContainsFunc(s.Objects, func(o Object) bool { return o.GetKind() == kind && o.GetName() == name })
}

// selected are the workloads whose pods a selector selects.
func (s *Set) selected(selector *metav1.LabelSelector) ([]Workload, error) {
	chosen, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(s.Workloads), func(w Workload) bool {
		return !chosen.Matches(labels.Set(w.Template.Labels))
	}), nil
}

// References checks what objects say of each other: Services, budgets, autoscalers, monitors and ingresses.
func (s *Set) References() error {
	var found problems
	services, err := all[corev1.Service](s, "Service")
	if err != nil {
		return err
	}
	for _, service := range services {
		about := named("Service " + service.Name)
		pods, err := s.selected(&metav1.LabelSelector{MatchLabels: service.Spec.Selector})
		if err != nil || len(pods) == 0 || len(service.Spec.Selector) == 0 {
			found.add(about, "it selects no pods (%v)", err)
		}
		for _, port := range service.Spec.Ports {
			for _, pod := range pods {
				if pod.port(port.TargetPort) == 0 {
					found.add(about, "%s has no port %s", pod, &port.TargetPort)
				}
			}
		}
	}
	s.budgets(&found)
	s.autoscalers(&found)
	s.scalers(&found, services)
	s.monitors(&found)
	ingresses, err := all[networkingv1.Ingress](s, "Ingress")
	if err != nil {
		return err
	}
	for _, ingress := range ingresses {
		for _, rule := range ingress.Spec.Rules {
			for _, path := range rule.HTTP.Paths {
				backend := path.Backend.Service
				if !slices.ContainsFunc(services, func(service corev1.Service) bool {
					return service.Name == backend.Name && slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool {
						return p.Name == backend.Port.Name
					})
				}) {
					found.add(named("Ingress "+ingress.Name), "there is no service %s with a port %s", backend.Name, backend.Port.Name)
				}
			}
		}
	}
	return errors.Join(found...)
}

// budgets: every Deployment has one, and every one has pods.
func (s *Set) budgets(found *problems) {
	budgets, err := all[policyv1.PodDisruptionBudget](s, "PodDisruptionBudget")
	if err != nil {
		*found = append(*found, err)
	}
	covered := map[string]bool{}
	for _, budget := range budgets {
		pods, err := s.selected(budget.Spec.Selector)
		if err != nil || len(pods) == 0 {
			found.add(named("PodDisruptionBudget "+budget.Name), "it selects no pods (%v)", err)
		}
		for _, pod := range pods {
			covered[pod.Name] = true
		}
	}
	for _, w := range s.Workloads {
		if w.Kind == "Deployment" && !covered[w.Name] {
			found.add(w, "it has no PodDisruptionBudget")
		}
	}
}

// autoscalers: what they scale is there, is scaled by one alone, and says no number itself: each apply would reset it.
func (s *Set) autoscalers(found *problems) {
	targets := map[string]string{}
	scales := func(about named, kind, name string) {
		if kind == "" {
			kind = "Deployment" // KEDA's default
		}
		i := slices.IndexFunc(s.Workloads, func(w Workload) bool { return w.Kind == kind && w.Name == name })
		switch {
		case i < 0:
			found.add(about, "there is no %s %s to scale", kind, name)
		case s.Workloads[i].Replicas != nil:
			found.add(s.Workloads[i], "it is scaled by %s and says a number of replicas itself", about)
		case targets[name] != "":
			found.add(about, "%s is scaled by %s already", name, targets[name])
		}
		targets[name] = string(about)
	}
	horizontal, err := all[autoscalingv2.HorizontalPodAutoscaler](s, "HorizontalPodAutoscaler")
	if err != nil {
		*found = append(*found, err)
	}
	for _, h := range horizontal {
		scales(named("HorizontalPodAutoscaler "+h.Name), h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name)
	}
	for _, object := range s.Objects {
		if object.GetKind() == "ScaledObject" {
			kind, _, _ := unstructured.NestedString(object.Object, "spec", "scaleTargetRef", "kind") // optional
			name, _, _ := unstructured.NestedString(object.Object, "spec", "scaleTargetRef", "name")
			scales(named("ScaledObject "+object.GetName()), kind, name)
		}
	}
	for _, w := range s.Workloads {
		if w.Kind == "Deployment" && w.Replicas == nil && targets[w.Name] == "" {
			found.add(w, "neither it nor an autoscaler says how many there are")
		}
	}
}

// askedURLs are those that KEDA asks for the figures of a ScaledObject.
func askedURLs(object Object) []string {
	var found []string
	triggers, _, _ := unstructured.NestedSlice(object.Object, "spec", "triggers") // the server wants them
	for _, trigger := range triggers {
		if asked, ok, _ := unstructured.NestedString(trigger.(map[string]any), "metadata", "url"); ok {
			found = append(found, asked)
		}
	}
	return found
}

// scalers: a URL that KEDA asks is a Service's, named as it is named from another namespace.
func (s *Set) scalers(found *problems, services []corev1.Service) {
	for _, object := range s.Objects {
		if object.GetKind() != "ScaledObject" {
			continue
		}
		for _, asked := range askedURLs(object) {
			if !slices.ContainsFunc(services, func(service corev1.Service) bool {
				return slices.ContainsFunc(service.Spec.Ports, func(port corev1.ServicePort) bool {
					return strings.HasPrefix(asked, fmt.Sprintf("http://%s.%s.svc:%d/", service.Name, s.Namespace, port.Port))
				})
			}) {
				found.add(named("ScaledObject "+object.GetName()), "%s is of no Service", asked)
			}
		}
	}
}

// monitors: what Prometheus is told to scrape is a port of the pods, and all services are scraped.
func (s *Set) monitors(found *problems) {
	scraped, monitored := map[string]bool{}, false
	for _, object := range s.Objects {
		if object.GetKind() != "PodMonitor" {
			continue
		}
		monitored = true
		about := named("PodMonitor " + object.GetName())
		spec, err := As[struct {
			Spec struct {
				Selector  metav1.LabelSelector `json:"selector"`
				Endpoints []struct {
					Port string `json:"port"`
					Path string `json:"path"`
				} `json:"podMetricsEndpoints"`
			} `json:"spec"`
		}](object)
		if err != nil {
			*found = append(*found, err)
			continue
		}
		pods, err := s.selected(&spec.Spec.Selector)
		if err != nil || len(pods) == 0 {
			found.add(about, "it selects no pods (%v)", err)
		}
		for _, pod := range pods {
			for _, endpoint := range spec.Spec.Endpoints {
				if pod.port(intstr.FromString(endpoint.Port)) == 0 || endpoint.Path != "/metrics" {
					found.add(about, "%s has no %s at port %s", pod, endpoint.Path, endpoint.Port)
				}
			}
			scraped[pod.Name] = true
		}
	}
	for _, w := range s.Workloads {
		if monitored && w.Kind == "Deployment" && !scraped[w.Name] {
			found.add(w, "nobody scrapes it")
		}
	}
}

// listName is the form of a list of tasks that wait, are at work, or are to be tried again, as Asynq calls them in Redis.
var listName = regexp.MustCompile(`^asynq:\{([a-z]+)\}:(pending|active|scheduled)$`)

// Lists checks that every list of Redis that a ScaledObject looks at is one of the queues given.
func (s *Set) Lists(queues []string) error {
	var found problems
	for _, object := range s.Objects {
		if object.GetKind() != "ScaledObject" {
			continue
		}
		about, looks := named("ScaledObject "+object.GetName()), 0
		triggers, _, _ := unstructured.NestedSlice(object.Object, "spec", "triggers") // the server wants them
		for _, trigger := range triggers {
			name, ok, _ := unstructured.NestedString(trigger.(map[string]any), "metadata", "listName")
			if !ok {
				continue
			}
			looks++
			if parts := listName.FindStringSubmatch(name); parts == nil || !slices.Contains(queues, parts[1]) {
				found.add(about, "%s is no list of the queues %s", name, strings.Join(queues, ", "))
			}
		}
		if looks == 0 {
			found.add(about, "it looks at no list of Redis")
		}
	}
	return errors.Join(found...)
}

// keyOf is what a TriggerAuthentication takes from a Secret.
type keyOf struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// word is a name or a function of a formula; a function has a parenthesis behind it.
var word = regexp.MustCompile(`[a-z_]+\(?`)

// Formulas checks that what a ScaledObject computes with are its triggers, and that it computes with all of them.
func (s *Set) Formulas() error {
	var found problems
	for _, object := range s.Objects {
		formula, ok, _ := unstructured.NestedString(object.Object, "spec", "advanced", "scalingModifiers", "formula")
		if object.GetKind() != "ScaledObject" || !ok {
			continue
		}
		about, names := named("ScaledObject "+object.GetName()), map[string]bool{}
		triggers, _, _ := unstructured.NestedSlice(object.Object, "spec", "triggers") // the server wants them
		for _, trigger := range triggers {
			name, _, _ := unstructured.NestedString(trigger.(map[string]any), "name") // optional
			names[name] = false
		}
		for _, name := range word.FindAllString(formula, -1) {
			if _, ok := names[name]; !ok && !strings.HasSuffix(name, "(") {
				found.add(about, "the formula has %s, which is no trigger", name)
			}
			names[name] = true
		}
		for name, used := range names {
			if !used {
				found.add(about, "the formula does not use the trigger %q", name)
			}
		}
	}
	return errors.Join(found...)
}

// Secrets are the keys of Secrets that pods and KEDA refer to, by the name of the Secret.
func (s *Set) Secrets() map[string][]string {
	keys := map[string]map[string]bool{}
	add := func(name, key string) {
		if keys[name] == nil {
			keys[name] = map[string]bool{}
		}
		if key != "" {
			keys[name][key] = true
		}
	}
	items := func(name string, paths []corev1.KeyToPath) {
		add(name, "")
		for _, item := range paths {
			add(name, item.Key)
		}
	}
	for _, w := range s.Workloads {
		for _, volume := range w.Template.Spec.Volumes {
			if volume.Secret != nil {
				items(volume.Secret.SecretName, volume.Secret.Items)
			}
			if volume.Projected != nil {
				for _, source := range volume.Projected.Sources {
					if source.Secret != nil {
						items(source.Secret.Name, source.Secret.Items)
					}
				}
			}
		}
		for _, container := range w.containers() {
			for _, from := range container.EnvFrom {
				if from.SecretRef != nil {
					add(from.SecretRef.Name, "")
				}
			}
			for _, variable := range container.Env {
				if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
					add(variable.ValueFrom.SecretKeyRef.Name, variable.ValueFrom.SecretKeyRef.Key)
				}
			}
		}
	}
	for _, object := range s.Objects {
		targets, _, _ := unstructured.NestedSlice(object.Object, "spec", "secretTargetRef") // of a TriggerAuthentication
		for _, target := range targets {
			ref, err := As[keyOf](Object{Object: target.(map[string]any)})
			if err == nil {
				add(ref.Name, ref.Key)
			}
		}
	}
	sorted := map[string][]string{}
	for name, set := range keys {
		sorted[name] = slices.Sorted(maps.Keys(set))
	}
	return sorted
}
