package k8scheck

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Object is any object of Kubernetes as it stands in YAML.
type Object = unstructured.Unstructured

// Render returns the objects of a kustomization, as `kubectl apply -k DIR` would send them: the library is that of the
// kubectl of the same release.
func Render(dir string) ([]Object, error) {
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("kustomize %s: %w", dir, err)
	}
	var objects []Object
	for _, resource := range rendered.Resources() {
		content, err := resource.Map()
		if err != nil {
			return nil, fmt.Errorf("kustomize %s: %w", dir, err)
		}
		objects = append(objects, Object{Object: content})
	}
	return objects, nil
}

// Set is the objects of one overlay, with those that the checks look into in their types.
type Set struct {
	Objects   []Object
	Namespace string
	Workloads []Workload
}

// Workload is something that makes pods.
type Workload struct {
	Kind, Name string
	Component  string // label app.kubernetes.io/name of its pods
	Replicas   *int32
	Template   corev1.PodTemplateSpec
}

func (w Workload) String() string { return w.Kind + " " + w.Name }

// NewSet finds the workloads among the objects. All have to be of one namespace.
func NewSet(objects []Object) (*Set, error) {
	set := &Set{Objects: objects}
	for _, object := range objects {
		namespace := object.GetNamespace()
		if object.GetKind() == "Namespace" {
			namespace = object.GetName()
		}
		if set.Namespace == "" {
			set.Namespace = namespace
		}
		if namespace != set.Namespace {
			return nil, fmt.Errorf("%s %s is in namespace %q and not in %q",
				object.GetKind(), object.GetName(), namespace, set.Namespace)
		}
		workload := Workload{Kind: object.GetKind(), Name: object.GetName()}
		switch object.GetKind() {
		case "Deployment":
			deployment, err := As[appsv1.Deployment](object)
			if err != nil {
				return nil, err
			}
			workload.Template, workload.Replicas = deployment.Spec.Template, deployment.Spec.Replicas
		case "StatefulSet":
			stateful, err := As[appsv1.StatefulSet](object)
			if err != nil {
				return nil, err
			}
			workload.Template, workload.Replicas = stateful.Spec.Template, stateful.Spec.Replicas
			for _, claim := range stateful.Spec.VolumeClaimTemplates {
				workload.Template.Spec.Volumes = append(workload.Template.Spec.Volumes, corev1.Volume{
					Name: claim.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
						ClaimName: claim.Name,
					}},
				})
			}
		case "Job":
			job, err := As[batchv1.Job](object)
			if err != nil {
				return nil, err
			}
			workload.Template = job.Spec.Template
		default:
			continue
		}
		workload.Component = workload.Template.Labels["app.kubernetes.io/name"]
		set.Workloads = append(set.Workloads, workload)
	}
	return set, nil
}

// As is the object in its type. A field that the type does not know is the server's to refuse.
func As[T any](object Object) (T, error) {
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed); err != nil {
		return typed, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return typed, nil
}

// all returns the objects of a kind in their type.
func all[T any](s *Set, kind string) ([]T, error) {
	var found []T
	for _, object := range s.Objects {
		if object.GetKind() != kind {
			continue
		}
		typed, err := As[T](object)
		if err != nil {
			return nil, err
		}
		found = append(found, typed)
	}
	return found, nil
}

// Pod is a pod that the workload would make.
func (w Workload) Pod(namespace string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: w.Name + "-0", Namespace: namespace, Labels: w.Template.Labels},
		Spec:       w.Template.Spec,
	}
}

// containers are all of the pod, those that run first included.
func (w Workload) containers() []corev1.Container {
	return append(append([]corev1.Container{}, w.Template.Spec.InitContainers...), w.Template.Spec.Containers...)
}
