package config

import (
	"context"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

// Bucket is the part of a process that creates the bucket if it does not exist. Services start in any order: it retries
// while the object store is unavailable, and the process is not ready meanwhile.
func Bucket(store *objects.Store, log *slog.Logger) rungroup.Component {
	const again = 2 * time.Second
	return rungroup.Component{Name: "bucket", Run: func(ctx context.Context) error {
		for {
			err := store.EnsureBucket(ctx)
			if err == nil {
				<-ctx.Done()
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(again):
				log.Warn("bucket is not there yet", "err", err)
			}
		}
	}}
}
