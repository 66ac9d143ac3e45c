// Package autoscale does what KEDA and the Kubernetes autoscaler would do with the ScaledObject of the workers, from the
// same file: it evaluates the formula with the library that KEDA 2.21 uses, compiled as KEDA does, and follows the rules of
// HorizontalPodAutoscaler v2 for one external metric. It decides; who calls it starts and stops the workers.
package autoscale

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
	"github.com/goccy/go-yaml"
)

// Object is what a ScaledObject says, as far as it matters to the number of workers.
type Object struct {
	Spec struct {
		Min      int `yaml:"minReplicaCount"`
		Max      int `yaml:"maxReplicaCount"`
		Polling  int `yaml:"pollingInterval"` // seconds
		Cooldown int `yaml:"cooldownPeriod"`  // seconds
		Advanced struct {
			Modifiers struct {
				Formula    string `yaml:"formula"`
				Target     string `yaml:"target"`
				MetricType string `yaml:"metricType"`
			} `yaml:"scalingModifiers"`
			HPA struct {
				Behavior struct {
					Up   Rules `yaml:"scaleUp"`
					Down Rules `yaml:"scaleDown"`
				} `yaml:"behavior"`
			} `yaml:"horizontalPodAutoscalerConfig"`
		} `yaml:"advanced"`
		Triggers []Trigger `yaml:"triggers"`
	} `yaml:"spec"`

	formula *vm.Program
	target  float64
}

// Trigger is one value that the formula names.
type Trigger struct {
	Type     string            `yaml:"type"`
	Name     string            `yaml:"name"`
	Metadata map[string]string `yaml:"metadata"`
}

// Rules are those of one direction.
type Rules struct {
	Window   int      `yaml:"stabilizationWindowSeconds"`
	Select   string   `yaml:"selectPolicy"` // Max alone is understood
	Policies []Policy `yaml:"policies"`
}

// Policy is how much may change in a period.
type Policy struct {
	Type   string `yaml:"type"` // Pods or Percent
	Value  int    `yaml:"value"`
	Period int    `yaml:"periodSeconds"`
}

// Read reads the ScaledObject, which is the first document of the file. What it cannot follow is an error.
func Read(path string) (*Object, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	o := &Object{}
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(o); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := o.compile(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return o, nil
}

func (o *Object) compile() error {
	modifiers, behavior := o.Spec.Advanced.Modifiers, o.Spec.Advanced.HPA.Behavior
	var errs []error
	var err error
	if o.target, err = strconv.ParseFloat(modifiers.Target, 64); err != nil || o.target <= 0 {
		errs = append(errs, fmt.Errorf("target %q is no number above 0", modifiers.Target))
	}
	if modifiers.MetricType != "AverageValue" {
		errs = append(errs, fmt.Errorf("metric type %q is not understood", modifiers.MetricType))
	}
	if o.Spec.Min < 0 || o.Spec.Max < max(o.Spec.Min, 1) {
		errs = append(errs, fmt.Errorf("from %d to %d workers are no range", o.Spec.Min, o.Spec.Max))
	}
	for _, rules := range []Rules{behavior.Up, behavior.Down} {
		if rules.Select != "Max" || len(rules.Policies) == 0 {
			errs = append(errs, errors.New("a behavior needs policies and selects the Max of them"))
		}
		for _, policy := range rules.Policies {
			if policy.Type != "Pods" && policy.Type != "Percent" || policy.Value <= 0 || policy.Period <= 0 {
				errs = append(errs, fmt.Errorf("policy %+v is not understood", policy))
			}
		}
	}
	// As KEDA's webhook does: every trigger is a float64, and one trial finds what the types do not tell.
	names := map[string]float64{}
	for _, trigger := range o.Spec.Triggers {
		names[trigger.Name] = -1
	}
	if o.formula, err = expr.Compile(modifiers.Formula, expr.Env(names)); err != nil {
		errs = append(errs, fmt.Errorf("formula: %w", err))
	} else if _, err := expr.Run(o.formula, names); err != nil {
		errs = append(errs, fmt.Errorf("formula: %w", err))
	}
	return errors.Join(errs...)
}

// Value evaluates the formula. A trigger that has failed for too long is missing from the values; an error means that
// there is no value, and the number of workers stays.
func (o *Object) Value(values map[string]float64) (float64, error) {
	data := map[string]any{}
	for _, trigger := range o.Spec.Triggers {
		data[trigger.Name] = nil
		if value, known := values[trigger.Name]; known {
			data[trigger.Name] = value
		}
	}
	result, err := expr.Run(o.formula, data)
	if err != nil {
		return 0, fmt.Errorf("formula: %w", err)
	}
	value, isFloat := result.(float64)
	if !isFloat {
		return 0, fmt.Errorf("formula gives %v, which is no float64", result)
	}
	return float64(int64(value*1000)) / 1000, nil // KEDA hands on thousandths
}

// SyncPeriod is how often the autoscaler looks, unless a cluster is told otherwise.
const SyncPeriod = 15 * time.Second
