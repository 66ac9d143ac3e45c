package k8scheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const manager = "k8scheck"

// Client applies objects to a server. It is for one goroutine.
type Client struct {
	DryRun bool // whether Apply only asks

	dynamic  dynamic.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	warnings *warnings
}

// warnings collects what the server says beside an answer: a deprecated version, a pod that its namespace would refuse.
type warnings struct {
	mutex sync.Mutex
	texts []string
}

// HandleWarningHeader serves rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) take() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if len(w.texts) == 0 {
		return nil
	}
	err := errors.New("the server warns: " + strings.Join(w.texts, "; "))
	w.texts = nil
	return err
}

// NewClient returns a client of the server.
func NewClient(config *rest.Config) (*Client, error) {
	said := &warnings{}
	config = rest.CopyConfig(config)
	config.WarningHandler = said
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Client{
		dynamic: client, warnings: said,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found)),
	}, nil
}

func (c *Client) of(object *Object) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	if namespace := object.GetNamespace(); namespace != "" {
		return c.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return c.dynamic.Resource(mapping.Resource), nil
}

// Apply applies an object as `kubectl apply --server-side --validate=strict` does and returns its version on the server.
// What the server warns of is an error.
func (c *Client) Apply(ctx context.Context, object Object) (version string, err error) {
	resource, err := c.of(&object)
	if err != nil {
		return "", about(object, err)
	}
	data, err := json.Marshal(object.Object)
	if err != nil {
		return "", about(object, err)
	}
	options := metav1.PatchOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict}
	if c.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	applied, err := resource.Patch(ctx, object.GetName(), types.ApplyPatchType, data, options)
	if err = errors.Join(err, c.warnings.take()); err != nil {
		return "", about(object, err)
	}
	return applied.GetResourceVersion(), nil
}

// Try asks whether the server would make the object, admission included, and makes nothing.
func (c *Client) Try(ctx context.Context, object any) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return err
	}
	asked := Object{Object: content}
	resource, err := c.of(&asked)
	if err != nil {
		return about(asked, err)
	}
	_, err = resource.Create(ctx, &asked, metav1.CreateOptions{
		DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict,
	})
	if err = errors.Join(err, c.warnings.take()); err != nil {
		return about(asked, err)
	}
	return nil
}

func about(object Object, err error) error {
	return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
}

// ApplyAll applies the objects, namespaces first, and returns their versions and all that was refused.
func (c *Client) ApplyAll(ctx context.Context, objects []Object) (map[string]string, error) {
	versions := map[string]string{}
	var problems []error
	ordered := slices.Clone(objects)
	slices.SortStableFunc(ordered, func(a, b Object) int { return rank(a) - rank(b) })
	for _, object := range ordered {
		version, err := c.Apply(ctx, object)
		problems = append(problems, err)
		versions[object.GetKind()+" "+object.GetName()] = version
	}
	return versions, errors.Join(problems...)
}

// rank puts what others are in before what is in it.
func rank(object Object) int {
	if object.GetKind() == "Namespace" {
		return 0
	}
	return 1
}

// Install applies the definitions in a file of YAML and waits until the server serves them.
func (c *Client) Install(ctx context.Context, path string) error {
	definitions, err := ReadObjects(path)
	if err != nil {
		return err
	}
	for _, definition := range definitions {
		if _, err := c.Apply(ctx, definition); err != nil {
			return err
		}
		resource, err := c.of(&definition)
		if err != nil {
			return err
		}
		for !established(ctx, resource, definition.GetName()) {
			select {
			case <-ctx.Done():
				return about(definition, ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	c.mapper.Reset()
	return nil
}

func established(ctx context.Context, resource dynamic.ResourceInterface, name string) bool {
	found, err := resource.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	conditions, _, _ := unstructured.NestedSlice(found.Object, "status", "conditions") // none yet
	return slices.ContainsFunc(conditions, func(condition any) bool {
		fields, ok := condition.(map[string]any)
		return ok && fields["type"] == "Established" && fields["status"] == "True"
	})
}

// ReadObjects reads the objects of a file of YAML.
func ReadObjects(path string) ([]Object, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	objects, err := ParseObjects(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return objects, nil
}

// ParseObjects reads the objects of a stream of YAML.
func ParseObjects(content []byte) ([]Object, error) {
	var objects []Object
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		var object Object
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}
