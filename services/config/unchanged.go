package config

import (
	"context"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// unchanged is the part of a worker that ends it when its source says that the data is not what was indexed. Such a
// worker can export nothing any more; the next one reads the folder anew, and the units wait for it.
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
