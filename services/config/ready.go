package config

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// Readiness returns the component that logs once that the service is ready, and before that the names of the checks that
// fail, whenever they change.
func Readiness(service string, checks health.Checks, log *slog.Logger) rungroup.Component {
	return rungroup.Component{Name: "readiness", Run: func(ctx context.Context) error {
		names := slices.Sorted(maps.Keys(checks))
		said := ""
		for ctx.Err() == nil {
			var down []string
			for _, name := range names {
				if checks[name](ctx) != nil {
					down = append(down, name)
				}
			}
			if len(down) == 0 {
				log.Info(service + " is ready")
				break
			}
			if waits := strings.Join(down, ", "); waits != said && ctx.Err() == nil {
				log.Warn(service+" waits for its dependencies", "down", waits)
				said = waits
			}
			select {
			case <-ctx.Done():
			case <-time.After(retryInterval):
			}
		}
		<-ctx.Done()
		return nil
	}}
}
