package config

import (
	"context"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// unchanged is the part of a worker that stops it when the data differs from the index of its source. Such a worker cannot
// export any more; the next one indexes the folder again, and the units wait for it.
func unchanged(check func(context.Context) error) rungroup.Component {
	const every = 15 * time.Second
	return rungroup.Component{Name: "source", Run: func(ctx context.Context) error {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				if err := check(ctx); err != nil {
					return err
				}
			}
		}
	}}
}
