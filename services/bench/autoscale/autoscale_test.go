package autoscale

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const shipped = "../../../k8s/base/worker-scaledobject.yaml"

func read(t *testing.T) *Object {
	t.Helper()
	o, err := Read(shipped)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// all is a value for each trigger of the shipped object.
func all(more map[string]float64) map[string]float64 {
	values := map[string]float64{
		"bulk_pending": 0, "bulk_active": 0, "bulk_scheduled": 0, "steering_pending": 0, "steering_active": 0,
		"steering_scheduled": 0, "oldest_waiting": 0, "busy_workers": 0,
	}
	for name, value := range more {
		values[name] = value
	}
	return values
}

func TestTheShippedFormula(t *testing.T) {
	o := read(t)
	for name, row := range map[string]struct {
		values map[string]float64
		want   float64
	}{
		"nothing to do":                         {nil, 0},
		"a plan waits":                          {map[string]float64{"steering_pending": 1}, 0.125},
		"a unit waits to be tried again":        {map[string]float64{"bulk_scheduled": 1}, 1},
		"the last unit is taken":                {map[string]float64{"bulk_active": 6, "busy_workers": 2}, 6},
		"the last units are spread":             {map[string]float64{"bulk_active": 4, "busy_workers": 4}, 12},
		"a large job":                           {map[string]float64{"bulk_active": 6, "bulk_pending": 10, "busy_workers": 2}, 16},
		"units wait long, of a job of many":     {map[string]float64{"bulk_pending": 3, "oldest_waiting": 60}, 6},
		"short ones count for little":           {map[string]float64{"steering_active": 2, "steering_pending": 6}, 1},
		"a short one that waits counts in time": {map[string]float64{"steering_pending": 8, "oldest_waiting": 40}, 3},
	} {
		got, err := o.Value(all(row.values))
		if err != nil || got != row.want {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, row.want)
		}
	}

	// The scheduler may be away, Redis may not.
	values := all(map[string]float64{"bulk_active": 3, "busy_workers": 3})
	delete(values, "oldest_waiting")
	delete(values, "busy_workers")
	if got, err := o.Value(values); err != nil || got != 3 {
		t.Errorf("without the scheduler: got %v, %v", got, err)
	}
	for _, trigger := range o.Spec.Triggers {
		if trigger.Type != "redis" {
			continue
		}
		values := all(nil)
		delete(values, trigger.Name)
		if got, err := o.Value(values); err == nil {
			t.Errorf("without %s: got %v, which would scale", trigger.Name, got)
		}
	}
}

func TestTheTriggersReadTheListsOfTheQueue(t *testing.T) {
	for _, trigger := range read(t).Spec.Triggers {
		if trigger.Type != "redis" {
			continue
		}
		queue, collection, _ := strings.Cut(trigger.Name, "_")
		if want := "asynq:{" + queue + "}:" + collection; trigger.Metadata["listName"] != want {
			t.Errorf("%s reads %q, want %q", trigger.Name, trigger.Metadata["listName"], want)
		}
	}
}

func TestAnObjectThatCannotBeFollowed(t *testing.T) {
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"a trigger that nobody has": {"bulk_pending + bulk_active", "bulk_pendings + bulk_active"},
		"no target":                 {`target: "3"`, `target: "0"`},
		"another metric type":       {"metricType: AverageValue", "metricType: Value"},
		"another select":            {"selectPolicy: Max", "selectPolicy: Min"},
		"an unknown policy":         {"type: Pods", "type: Nodes"},
		"no range":                  {"maxReplicaCount: 20", "maxReplicaCount: 0"},
		"no YAML":                   {"spec:", "spec: ]"},
	} {
		changed := strings.Replace(string(text), change[0], change[1], 1)
		if changed == string(text) {
			t.Fatalf("%s: nothing was changed", name)
		}
		path := filepath.Join(t.TempDir(), "object.yaml")
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.yaml")); err == nil {
		t.Error("no file: no error")
	}
}

// The shipped rules: 3 units a worker, up at once by double or 4 in 15 s, down after 120 s by half or 1 in 60 s.
func TestTheNumberOfWorkersFollows(t *testing.T) {
	type look struct {
		second int
		value  float64
		want   int
	}
	for name, looks := range map[string][]look{
		"up by doubling":                  {{0, 60, 5}, {15, 60, 10}, {30, 60, 20}, {45, 90, 20}},
		"within the tolerance":            {{0, 3.2, 1}, {15, 3.4, 2}},
		"down only after the window":      {{0, 12, 4}, {15, 3, 4}, {115, 3, 4}, {121, 3, 2}, {150, 3, 2}, {182, 3, 1}},
		"a dip is nothing":                {{0, 12, 4}, {60, 0, 4}, {90, 12, 4}, {150, 0, 4}, {205, 0, 4}, {211, 0, 2}},
		"no fewer than one while it asks": {{0, 0, 1}, {600, 0, 1}},
	} {
		scaler, current, start := Scaler{Object: read(t)}, 1, time.Unix(1_000_000, 0)
		for _, l := range looks {
			current = scaler.Desired(start.Add(time.Duration(l.second)*time.Second), current, l.value)
			if current != l.want {
				t.Errorf("%s, second %d: got %d, want %d", name, l.second, current, l.want)
			}
		}
	}
}

func TestToZeroAndBack(t *testing.T) {
	object := read(t)
	object.Spec.Min = 0
	scaler, start := Scaler{Object: object}, time.Unix(1_000_000, 0)
	at := func(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }
	for _, look := range []struct {
		second, current int
		value           float64
		want            int
	}{
		{0, 0, 0, 0}, {5, 0, 0.125, 1}, {10, 1, 0.125, 1}, {300, 1, 0, 1}, {311, 1, 0, 0}, {316, 0, 0, 0},
	} {
		if got := scaler.Activate(at(look.second), look.current, look.value); got != look.want {
			t.Errorf("second %d: got %d, want %d", look.second, got, look.want)
		}
	}
	if got := scaler.Desired(at(400), 0, 30); got != 0 {
		t.Errorf("an autoscaler that sees none: got %d", got)
	}
	object.Spec.Min = 1
	if got := scaler.Activate(at(10_000), 1, 0); got != 1 {
		t.Errorf("with a least number: got %d", got)
	}
}
