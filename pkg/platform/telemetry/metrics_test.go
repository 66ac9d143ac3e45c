package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDependencies(t *testing.T) {
	registry := prometheus.NewRegistry()
	redis := telemetry.NewDependencies(registry).Observer("redis")
	began := time.Now()
	redis.Observe("read", began, nil)
	redis.Observe("read", began, fmt.Errorf("read: %w", context.Canceled)) // counts as no error
	redis.Observe("write", began, errors.New("it is down"))
	want := `
# HELP sluice_dependency_errors_total Failed calls of a dependency.
# TYPE sluice_dependency_errors_total counter
sluice_dependency_errors_total{dependency="redis",operation="read"} 0
sluice_dependency_errors_total{dependency="redis",operation="write"} 1
`
	err := testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_dependency_errors_total")
	if err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]uint64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if histogram := metric.GetHistogram(); histogram != nil {
				calls[metric.GetLabel()[1].GetValue()] += histogram.GetSampleCount()
			}
		}
	}
	if calls["read"] != 2 || calls["write"] != 1 {
		t.Errorf("calls: %v", calls)
	}
}

func TestNilDependencies(t *testing.T) {
	var none *telemetry.Dependencies
	none.Observer("redis").Observe("read", time.Now(), errors.New("down"))
}
